"""Whether a cluster file would bring up a cluster that a sweep can use: `buttress cluster check`.

In comes a file for `ray up`, or a RayCluster manifest for KubeRay; out comes a `Checked`: one sentence per fault, or
one line that says what the cluster is. Nothing is contacted. `check.py` is the door; `launcher.py` and `kuberay.py`
judge the two kinds of file, with `shapes.py` (schemas), `starts.py` (start commands), `providers.py` (clouds),
`leaks.py` (secrets) and `capacity.py` (does a sweep's trial fit). Importing this package imports no Ray.
"""
