"""Score, prune, distil and compare a pipeline: python examples/prune_your_pipeline.py."""

from pathlib import Path

from tiny_pipeline import make_pipeline, save_pictures

import pelap

save_pictures(Path("pictures"))
pipe = make_pipeline()  # yours: pelap.load_pipeline("my-pipeline")

scores = pelap.score(pipe, num_latents=32, steps=10, progress=True)
plan = pelap.make_plan(scores, time_reduction=0.35)
small = pelap.prune(pipe, plan)
fast = pelap.distill(small, teacher=pipe, data="pictures", steps=200, progress=True)
result = pelap.evaluate({"dense": pipe, "small": small, "fast": fast}, reference="pictures", steps=10)
print(scores, plan, result, sep="\n\n")
fast.save_pretrained("my-pipeline-fast")  # pelap.load_pipeline opens it
