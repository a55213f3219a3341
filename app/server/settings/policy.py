"""Settings of the policy: measurements, thresholds, correction, and limits of one screening."""

from pydantic import Field
from pydantic_settings import BaseSettings

from app.domain.policy import (
    DEFAULT_ENERGY,
    DEFAULT_TAU,
    DEFAULT_TOP_K,
    Action,
    Comparison,
    Policy,
    Towers,
    Unscorable,
    default_action,
)


class PolicySettings(BaseSettings):
    """Settings of the screening policy, and of the process that screens."""

    comparison: Comparison = Field(
        Comparison.INPUT, description="E-DIEM comparison that decides: input, alignment or projection"
    )
    tau: float | None = Field(
        None,
        allow_inf_nan=False,
        description="Threshold τ: a module with an E-DIEM above it is condemned (interquartile ranges); default: "
        f"{DEFAULT_TAU[Action.PROJECT]:g} when projecting, {DEFAULT_TAU[Action.PRUNE]:g} when pruning",
    )
    action: Action | None = Field(
        None,
        description="Treatment of a condemned module: project (take out the directions that alignment reads or writes; "
        "needs the comparison input and tau ≥ 0) or prune (cut it out); default: project with the comparison "
        "input, else prune",
    )
    project_outputs: int = Field(
        1, ge=0, description="Outputs that projecting takes out as well: this many left singular vectors of V"
    )
    max_removed_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Reject an adapter if projecting would remove a larger share of its update's squared norm",
    )
    max_pruned: int | None = Field(
        None, ge=0, description="Cut out at most this many modules, the worst first; default: no cap"
    )
    cap_keeps: bool = Field(
        False, description="Keep condemned modules that max-pruned spares, instead of rejecting the adapter"
    )
    max_pruned_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Reject an adapter if a larger share of its modules would be cut out, or scores above reject-tau if "
        "that is set",
    )
    reject_tau: float | None = Field(
        None,
        allow_inf_nan=False,
        description="Score above which a module counts towards max-pruned-share; default: each module that is cut out "
        "counts",
    )
    max_update_ratio: float = Field(
        100.0,
        gt=0,
        allow_inf_nan=False,
        description="Reject an adapter if the norm of a module's update exceeds this many times the norm of its V",
    )
    unscorable: Unscorable = Field(
        Unscorable.REJECT, description="Treatment of a module without a score: reject, prune or keep"
    )
    towers: Towers = Field(
        Towers.CUT,
        description="Treatment of modules of a vision or audio tower or a projector: cut (out of the adapter; its report "
        "says so), reject (the adapter), or serve (the engine has to run with --enable-tower-connector-lora, as the "
        "embedded one then does; else it drops them without a word)",
    )
    energy: float = Field(
        DEFAULT_ENERGY,
        gt=0,
        le=1,
        description="Inputs of a module that are measured and projected out: the fewest right singular vectors of V that "
        "hold this share of its squared norm; 1: always top-k of them",
    )
    top_k: int = Field(
        DEFAULT_TOP_K,
        ge=1,
        description="Most inputs of a module that are measured and projected out, whatever share of V they hold",
    )
    max_block_score: float | None = Field(
        None,
        allow_inf_nan=False,
        description="Reject an adapter if the combined score of one block's kept modules is higher; default: the score "
        "is only reported",
    )
    max_adapter_score: float | None = Field(
        None,
        allow_inf_nan=False,
        description="Reject an adapter if the combined score of all kept modules is higher; default: the score is only "
        "reported",
    )
    all_comparisons: bool = Field(
        False,
        description="Measure every comparison for each upload's report, not only the one that decides: with `input` this "
        "reads V three times more; dry runs and `screen` always do",
    )
    screen_device: str = Field(
        "cpu", description="Device that holds V and multiplies with it (cuda: untested, no GPU was at hand)"
    )
    screen_seconds: float = Field(
        120.0,
        gt=0,
        allow_inf_nan=False,
        description="Longest screening of one adapter, seconds; a longer one is refused",
    )
    screen_sandbox: bool = Field(
        True,
        description="Read and measure each upload in an isolated process of its own; on a GPU always in the gateway's "
        "process",
    )
    screen_memory_mib: int = Field(
        8192, ge=64, description="Memory of that process for one upload, besides the reference, MiB"
    )
    max_scaling: float = Field(
        64.0, gt=0, allow_inf_nan=False, description="Largest scaling: alpha / r, or alpha / sqrt r with use_rslora"
    )

    @property
    def policy(self) -> Policy:
        """Screening policy that these settings define."""
        action = self.action or default_action(self.comparison)
        return Policy(
            comparison=self.comparison,
            tau=DEFAULT_TAU[action] if self.tau is None else self.tau,
            max_pruned=self.max_pruned,
            cap_keeps=self.cap_keeps,
            max_pruned_share=self.max_pruned_share,
            max_update_ratio=self.max_update_ratio,
            unscorable=self.unscorable,
            top_k=self.top_k,
            energy=self.energy,
            max_block_score=self.max_block_score,
            max_adapter_score=self.max_adapter_score,
            action=action,
            max_removed_share=self.max_removed_share,
            project_outputs=self.project_outputs,
            reject_tau=self.reject_tau,
            towers=self.towers,
        )
