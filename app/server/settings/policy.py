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
    Unscorable,
    default_action,
)


class PolicySettings(BaseSettings):
    """Settings of the screening policy, and of the process that screens."""

    comparison: Comparison = Field(Comparison.INPUT, description="E-DIEM comparison: input, alignment or projection")
    tau: float | None = Field(
        None,
        allow_inf_nan=False,
        description="Condemn a module whose E-DIEM is above this (IQRs); default: "
        f"{DEFAULT_TAU[Action.PROJECT]:g} when projecting, {DEFAULT_TAU[Action.PRUNE]:g} when pruning",
    )
    action: Action | None = Field(
        None,
        description="What a condemned module suffers: project (take out what reads or writes where alignment does; needs "
        "the comparison input and tau ≥ 0) or prune (cut out); default: project with input, else prune",
    )
    project_outputs: int = Field(1, ge=0, description="Left singular vectors of V that projecting takes out besides")
    max_removed_share: float = Field(
        0.5, ge=0, le=1, description="Reject when projecting would take a larger share of the update's squared norm"
    )
    max_pruned: int | None = Field(None, ge=0, description="Prune at most this many modules, worst first")
    cap_keeps: bool = Field(False, description="Keep condemned modules the cap spares, instead of rejecting")
    max_pruned_share: float = Field(0.5, ge=0, le=1, description="Reject when a larger share of modules is condemned")
    reject_tau: float | None = Field(
        None,
        allow_inf_nan=False,
        description="What scores above this counts towards max-pruned-share; default: what is cut out",
    )
    max_update_ratio: float = Field(
        100.0, gt=0, allow_inf_nan=False, description="Reject a module whose update's norm exceeds this times V's"
    )
    unscorable: Unscorable = Field(Unscorable.REJECT, description="Module without a score: reject, prune or keep")
    energy: float = Field(
        DEFAULT_ENERGY,
        gt=0,
        le=1,
        description="Inputs looked at, and projected out, in a module: the fewest right singular vectors of V that hold "
        "this share of its squared norm; 1: always top-k of them",
    )
    top_k: int = Field(DEFAULT_TOP_K, ge=1, description="At most that many, and at most what the reference keeps")
    max_block_score: float | None = Field(
        None,
        allow_inf_nan=False,
        description="Reject when a block's kept modules together score more; default: reported",
    )
    max_adapter_score: float | None = Field(
        None, allow_inf_nan=False, description="Reject when all kept modules together score more; default: reported"
    )
    screen_device: str = Field("cpu", description="Where V is kept and multiplied (cuda: untested, no GPU was at hand)")
    screen_seconds: float = Field(
        120.0, gt=0, allow_inf_nan=False, description="Longest screening of one adapter, seconds; later it is rejected"
    )
    screen_sandbox: bool = Field(
        True, description="Read and measure each upload in a process of its own, shut away; on a GPU always in ours"
    )
    screen_memory_mib: int = Field(
        8192, ge=64, description="Memory of that process for one upload, beyond the reference, MiB"
    )
    max_scaling: float = Field(64.0, gt=0, allow_inf_nan=False, description="Largest alpha / r (or alpha / sqrt r)")

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
        )
