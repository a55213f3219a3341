"""The demo's model on Ray Serve LLM, its adapters from object storage: serve run serve_demo:app. See docs/ray-serve.md."""

import os

from ray.serve.llm import LLMConfig, build_openai_app

MODEL = os.environ["MODEL"]
"""Directory of the served (aligned) checkpoint: the one the gateway's reference was made of."""

config = LLMConfig(
    model_loading_config={"model_id": "demo", "model_source": MODEL},
    lora_config={
        "dynamic_lora_loading_path": os.environ["ADAPTERS"],  # s3://bucket/prefix, as export.py fills it
        "max_num_adapters_per_replica": 4,
    },
    engine_kwargs={
        "dtype": os.environ.get("DTYPE", "bfloat16"),
        "max_model_len": 512,
        "enable_lora": True,
        "max_loras": 4,
        "max_cpu_loras": 16,
        "max_lora_rank": 16,
    },
    deployment_config={"num_replicas": 1, "ray_actor_options": {"num_cpus": 1}},
    **({"placement_group_config": {"bundles": [{"CPU": 1}]}} if os.environ.get("ON_CPU") else {}),
)
app = build_openai_app({"llm_configs": [config]})
