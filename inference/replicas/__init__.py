"""Published adapters on the replicas of a remote server, without a restart.

`adapter_folder` holds the checked files, in a folder that all replicas read. `replica` talks to one vLLM server.
`replica_adapters` makes what each replica serves match the folder.
"""
