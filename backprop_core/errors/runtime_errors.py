"""Errors at run time: missing dependencies (DEP_), failures (RUNTIME_) and conflicts on disk (STATE_)."""

from backprop_core.errors.root import BackpropError

# DEP_: a dependency or service is missing or unreachable


class ModelLoadFailed(BackpropError):
    """The base model is incomplete or cannot be loaded."""

    code = "DEP_MODEL_LOAD_FAILED"


class GPUNotAvailable(BackpropError):
    """A GPU was requested, but none is usable."""

    code = "DEP_GPU_NOT_AVAILABLE"


class ExtraMissing(BackpropError):
    """An optional package is not installed."""

    code = "DEP_EXTRA_MISSING"


class UnslothNotAvailable(BackpropError):
    """Unsloth was requested, but its environment cannot import it."""

    code = "DEP_UNSLOTH_NOT_AVAILABLE"


class UnslothTooOld(BackpropError):
    """The release of Unsloth in its environment is one whose attention is not causal as it is called here."""

    code = "DEP_UNSLOTH_TOO_OLD"


class MLflowUnreachable(BackpropError):
    """MLflow does not respond, so the run history cannot be read."""

    code, exit_status, retryable = "DEP_MLFLOW_UNREACHABLE", 2, True


class PrefectUnreachable(BackpropError):
    """No Prefect server responds."""

    code, exit_status, retryable = "DEP_PREFECT_UNREACHABLE", 2, True


class OllamaUnreachable(BackpropError):
    """Ollama does not respond, or stopped responding. Its existing models are unchanged."""

    code, exit_status, retryable = "DEP_OLLAMA_UNREACHABLE", 2, True


class OllamaRegistrationFailed(BackpropError):
    """Ollama is too old, out of disk space, or failed to create a working model. Its existing models are unchanged."""

    code, exit_status, retryable = "DEP_OLLAMA_REGISTRATION_FAILED", 2, True


class ServerFailed(BackpropError):
    """A server or worker process that `serve` launches failed to start."""

    code, exit_status, retryable = "DEP_SERVER_FAILED", 2, True


class DeploymentRefused(BackpropError):
    """The Prefect server rejected a deployment or a deployment run."""

    code, exit_status = "DEP_PREFECT_REFUSED", 2


class DeploymentMissing(BackpropError):
    """The Prefect server has no deployment of the requested flow."""

    code, exit_status = "DEP_DEPLOYMENT_MISSING", 2


class HubUnreachable(BackpropError):
    """The Hub does not respond, or limits the rate of requests. Files already uploaded are not uploaded again."""

    code, exit_status, retryable = "DEP_HUB_UNREACHABLE", 2, True


class JudgeUnreachable(BackpropError):
    """The judge model does not respond, or is overloaded."""

    code, exit_status, retryable = "DEP_JUDGE_UNREACHABLE", 2, True


class JudgeFailed(BackpropError):
    """The judge model rejected the request, or returned no grade."""

    code, exit_status = "DEP_JUDGE_FAILED", 2


class HarnessFailed(BackpropError):
    """lm-evaluation-harness cannot load or score a task."""

    code, exit_status, retryable = "DEP_HARNESS_FAILED", 2, True


# RUNTIME_: a valid request failed


class GPUOutOfMemory(BackpropError):
    """The training step does not fit into GPU memory."""

    code, exit_status = "RUNTIME_GPU_OOM", 2


class GPUTooHot(BackpropError):
    """The GPU stayed too hot. A checkpoint was saved."""

    code, exit_status, retryable = "RUNTIME_GPU_TEMPERATURE_CRITICAL", 2, True


class LossNotFinite(BackpropError):
    """The loss became NaN or infinite. The step was not saved."""

    code, exit_status = "RUNTIME_LOSS_NOT_FINITE", 2


class WorkerDied(BackpropError):
    """The worker process exited without a result."""

    code, exit_status, retryable = "RUNTIME_WORKER_DIED", 2, True


class WorkerStalled(BackpropError):
    """The worker process made no progress and was killed."""

    code, exit_status, retryable = "RUNTIME_WORKER_STALLED", 2, True


class GPUFault(BackpropError):
    """The GPU or its driver failed. Only a new process can use it again."""

    code, exit_status, retryable = "RUNTIME_GPU_FAULT", 2, True


class GGUFExportFailed(BackpropError):
    """The GGUF file could not be written."""

    code, exit_status = "RUNTIME_GGUF_EXPORT_FAILED", 2


class ExportFidelity(BackpropError):
    """An exported file gives other answers than the model it was made from."""

    code, exit_status = "RUNTIME_EXPORT_FIDELITY", 2


class HubUploadFailed(BackpropError):
    """The Hub rejected the upload. The repository is unchanged."""

    code, exit_status = "RUNTIME_HUB_UPLOAD_FAILED", 2


class DiskFull(BackpropError):
    """No disk space left. The partial file was removed; everything else is unchanged."""

    code, exit_status, retryable = "RUNTIME_DISK_FULL", 2, True


class StorageFailed(BackpropError):
    """The disk or network storage failed to read or write. A partial artifact was removed."""

    code, exit_status, retryable = "RUNTIME_STORAGE_FAILED", 2, True


class Interrupted(BackpropError):
    """The run was stopped by the user or the system."""

    code, exit_status = "RUNTIME_INTERRUPTED", 130


class TimeLimit(BackpropError):
    """The run reached max_seconds. Finished work is kept, and the run can be resumed."""

    code, exit_status = "RUNTIME_TIME_LIMIT", 3


class Unexpected(BackpropError):
    """An unexpected error: most likely a bug in this project."""

    code, exit_status = "RUNTIME_UNEXPECTED", 2


# STATE_: the state on disk does not allow it


class ArtifactMissing(BackpropError):
    """The store does not hold this artifact."""

    code, exit_status = "STATE_ARTIFACT_MISSING", 2


class ArtifactDamaged(BackpropError):
    """A stored file does not match its digest."""

    code, exit_status = "STATE_ARTIFACT_DAMAGED", 2


class CheckpointInvalid(BackpropError):
    """A checkpoint is damaged or belongs to another job."""

    code, exit_status = "STATE_CHECKPOINT_INVALID", 2


class LineConflict(BackpropError):
    """The line cannot be continued: its base or shape differs, or another run added a version meanwhile."""

    code = "STATE_LINE_CONFLICT"


class StoreUnreachable(BackpropError):
    """The bucket of the store does not answer."""

    code, exit_status, retryable = "STATE_STORE_UNREACHABLE", 2, True


class StoreConflict(BackpropError):
    """Another machine changed the same file of a shared store first."""

    code = "STATE_STORE_CONFLICT"


class LeaseLost(BackpropError):
    """Another machine took over the work, because this one did not renew its lease in time."""

    code, exit_status = "STATE_LEASE_LOST", 2


class RebuildImpossible(BackpropError):
    """A version of a line cannot be trained again without forgotten rows."""

    code = "STATE_REBUILD_IMPOSSIBLE"


class DatasetMissing(BackpropError):
    """The store no longer has rows that a version of a line was trained or scored on."""

    code = "STATE_DATASET_MISSING"


class NotGated(BackpropError):
    """The gate rejected this version of a line, or never checked it."""

    code = "STATE_NOT_GATED"


class NameTaken(BackpropError):
    """The name is already used by something that this project did not create."""

    code = "STATE_NAME_TAKEN"


class HistoryDamaged(BackpropError):
    """The MLflow database in the home is damaged or from another MLflow version. The journals still hold every run."""

    code, exit_status = "STATE_HISTORY_DAMAGED", 2


class FormatNewer(BackpropError):
    """The home, the store, a file in them or the MLflow database was written by a newer version."""

    code, exit_status = "STATE_FORMAT_NEWER", 2


class ServerActive(BackpropError):
    """Another `serve` is already running for this home."""

    code = "STATE_SERVER_ACTIVE"


class RunActive(BackpropError):
    """Another process is working on this run."""

    code = "STATE_RUN_ACTIVE"


class FileChanged(BackpropError):
    """The job file has changed since the form that was sent was made from it."""

    code = "STATE_FILE_CHANGED"


class AlreadyAnswered(BackpropError):
    """The question whether a version goes live no longer takes an answer."""

    code = "STATE_ALREADY_ANSWERED"


class DeviceBusy(BackpropError):
    """A run uses the GPU or CPU, or needs it now. Runs come before questions to a model."""

    code, exit_status, retryable = "STATE_DEVICE_BUSY", 2, True
