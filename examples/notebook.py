# %% [markdown]
# # A checkpoint in a notebook
#
# Open this file as a notebook, for example in VS Code or with Jupytext, or run it as a script in the root of the
# repository. The last line of a cell is what a notebook shows: reports are tables there.

# %%
import os
import tempfile

import vita_ckpt

golden = os.path.abspath("fixtures/golden")
os.chdir(os.path.join(golden, "A7"))
work = tempfile.mkdtemp()

# %% [markdown]
# ## What is it?
#
# Only headers are read, whatever a checkpoint weighs.

# %%
checkpoint = vita_ckpt.open_checkpoint("base")
checkpoint

# %%
vita_ckpt.inspect(checkpoint)

# %% [markdown]
# ## Is it sound?

# %%
vita_ckpt.validate("base")

# %% [markdown]
# ## What would a merge do?
#
# A plan is a value. Nothing is written before `apply`.

# %%
plan = vita_ckpt.plan_merge_projector(checkpoint, "mm_projector_fp32")
plan

# %%
vita_ckpt.summarize(plan)

# %% [markdown]
# ## Do it, and look at what has changed

# %%
merged = vita_ckpt.apply(plan, os.path.join(work, "merged"))
vita_ckpt.diff(checkpoint, merged, values=True, only=["model.mm_projector.*"])

# %%
vita_ckpt.history(merged)

# %% [markdown]
# ## How large are the values?

# %%
for part, found in vita_ckpt.distributions(merged).items():
    print(f"{part}: {found.elements:,} values, the largest is {found.largest:.3g}")

# %% [markdown]
# ## Reports are data too

# %%
report = vita_ckpt.diff(checkpoint, merged, values=True).to_dict()
{tensor["name"]: tensor["values"]["relative_l2"] for tensor in report["tensors"]}
