"""The runner in a session's pod: `task` reads the environment, `places` knows the folders, `keeping` keeps them
in step with the content proxy, `preparing` sets the workspace up, `serving` is the whole story of a pod.
"""
