"""Models on the Hugging Face Hub and their copies on this disk. Knows no engine and no page.

One download, from the box "Add a model from the Hub" to the disk:

1. `discovery.repository_name` reads the text in the box, `find_by_name` asks the Hub about that repository.
2. `entries.to_entry` makes it a catalog entry: the file to run and the base, or the reason why it cannot run.
3. `artifacts.needed_files` names the files that the engine needs of each part (base, adapter).
4. `download.prepare` lists them with sizes and hashes; `check_memory` compares them with this machine.
5. `cache.Cache.room_for` reserves disk space, and deletes models that were not used for long.
6. `transfer.RepositoryDownload.run` downloads each file, resumes partial ones, checks the hash, and then publishes
   the snapshot: `artifacts.on_disk` finds the model from that moment on.

Modules, each using only those above it:

- `client`: requests to the Hub, retries, error messages
- `cache`: copies on this disk, their age and disk space
- `transfer`: the download of one repository's files
- `download`: the download of a model, with checks and progress
- `artifacts`: the files of a catalog entry, by format
- `repository`: what the Hub and its files say about a repository
- `entries`: a repository as a catalog entry
- `saved_listing`: lists of repositories, saved for times when the Hub is unreachable
- `discovery`: the models that accounts, a collection or a visitor name
"""
