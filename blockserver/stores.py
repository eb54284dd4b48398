"""The block store that the settings name."""

from blockserver.settings import StoreSettings
from blockserver.storage.backend import Backend
from blockserver.storage.folder import BlockFolder
from blockserver.storage.threads import FolderBackend


def open_backend(settings: StoreSettings) -> Backend:
    """The store, to be closed by the caller. A folder is made if need be; a bucket is not looked at yet."""
    if settings.block_store == "folder":
        assert settings.block_dir is not None  # the settings refuse this
        return FolderBackend(BlockFolder(settings.block_dir, min_free_bytes=settings.block_min_free_bytes))
    # boto3 takes half a second and 25 MB, which whoever keeps a folder need not spend.
    from blockserver.storage.s3 import S3Backend
    from blockserver.storage.s3_client import S3Options

    assert settings.s3_bucket is not None
    options = S3Options(
        bucket=settings.s3_bucket,
        prefix=settings.s3_prefix,
        region=settings.s3_region,
        endpoint_url=settings.s3_endpoint_url,
        public_endpoint_url=settings.s3_public_endpoint_url,
        addressing=settings.s3_addressing,
        credentials_file=settings.s3_credentials_file,
        is_direct=settings.s3_direct,
        is_verifying=settings.s3_verifies_checksums,
    )
    return S3Backend(options)
