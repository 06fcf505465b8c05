"""It was asked rightly: something is missing, failed, or stands in the way: DEP_, RUNTIME_ and STATE_."""

from backprop_core.errors.root import BackpropError

# DEP_: something that this needs is not there


class ModelLoadFailed(BackpropError):
    """The base model is not complete or cannot be loaded."""

    code = "DEP_MODEL_LOAD_FAILED"


class GPUNotAvailable(BackpropError):
    """A GPU was asked for and none can be used."""

    code = "DEP_GPU_NOT_AVAILABLE"


class ExtraMissing(BackpropError):
    """An optional package is not installed."""

    code = "DEP_EXTRA_MISSING"


class UnslothNotAvailable(BackpropError):
    """Unsloth was asked for and cannot be imported where it should be."""

    code = "DEP_UNSLOTH_NOT_AVAILABLE"


class MLflowUnreachable(BackpropError):
    """The history cannot be read because MLflow does not answer."""

    code, exit_status, retryable = "DEP_MLFLOW_UNREACHABLE", 2, True


class PrefectUnreachable(BackpropError):
    """No Prefect server answers, so that nothing can be ordered or cached."""

    code, exit_status, retryable = "DEP_PREFECT_UNREACHABLE", 2, True


class OllamaUnreachable(BackpropError):
    """Ollama does not answer, or stopped answering in the middle; what it had before, it still has."""

    code, exit_status, retryable = "DEP_OLLAMA_UNREACHABLE", 2, True


class OllamaRegistrationFailed(BackpropError):
    """Ollama is too old, out of disk, or did not make a model that answers; what it had before, it still has."""

    code, exit_status, retryable = "DEP_OLLAMA_REGISTRATION_FAILED", 2, True


class ServerFailed(BackpropError):
    """A server or worker that `serve` starts does not start."""

    code, exit_status, retryable = "DEP_SERVER_FAILED", 2, True


class DeploymentRefused(BackpropError):
    """The Prefect server does not take a deployment, or a run of one, as it shall be."""

    code, exit_status = "DEP_PREFECT_REFUSED", 2


class DeploymentMissing(BackpropError):
    """The Prefect server has no deployment of the flow that is asked for."""

    code, exit_status = "DEP_DEPLOYMENT_MISSING", 2


class HubUnreachable(BackpropError):
    """The Hub does not answer, or asks to come back later; what was uploaded is not uploaded again."""

    code, exit_status, retryable = "DEP_HUB_UNREACHABLE", 2, True


class JudgeUnreachable(BackpropError):
    """The model that grades answers does not answer, or is too busy."""

    code, exit_status, retryable = "DEP_JUDGE_UNREACHABLE", 2, True


class JudgeFailed(BackpropError):
    """The model that grades answers refuses, or gives no grade."""

    code, exit_status = "DEP_JUDGE_FAILED", 2


class HarnessFailed(BackpropError):
    """lm-evaluation-harness cannot have a task's data, or cannot score it."""

    code, exit_status, retryable = "DEP_HARNESS_FAILED", 2, True


# RUNTIME_: it was asked rightly and failed


class GPUOutOfMemory(BackpropError):
    """The step does not fit into the GPU's memory."""

    code, exit_status = "RUNTIME_GPU_OOM", 2


class GPUTooHot(BackpropError):
    """The GPU did not cool down; a checkpoint was saved."""

    code, exit_status, retryable = "RUNTIME_GPU_TEMPERATURE_CRITICAL", 2, True


class LossNotFinite(BackpropError):
    """The loss became NaN or infinite; nothing of it was saved."""

    code, exit_status = "RUNTIME_LOSS_NOT_FINITE", 2


class WorkerDied(BackpropError):
    """The worker process ended without a result."""

    code, exit_status, retryable = "RUNTIME_WORKER_DIED", 2, True


class WorkerStalled(BackpropError):
    """The worker process was alive and came no further; it was ended."""

    code, exit_status, retryable = "RUNTIME_WORKER_STALLED", 2, True


class GPUFault(BackpropError):
    """The GPU or its driver failed; only a new process can go on."""

    code, exit_status, retryable = "RUNTIME_GPU_FAULT", 2, True


class GGUFExportFailed(BackpropError):
    """The GGUF file could not be written."""

    code, exit_status = "RUNTIME_GGUF_EXPORT_FAILED", 2


class ExportFidelity(BackpropError):
    """An exported file does not answer as the model it came from."""

    code, exit_status = "RUNTIME_EXPORT_FIDELITY", 2


class HubUploadFailed(BackpropError):
    """The Hub did not take the files; the repository is as it was."""

    code, exit_status = "RUNTIME_HUB_UPLOAD_FAILED", 2


class DiskFull(BackpropError):
    """No space left; what was being written is gone, everything else is untouched."""

    code, exit_status, retryable = "RUNTIME_DISK_FULL", 2, True


class StorageFailed(BackpropError):
    """The disk, or the network behind it, failed to read or write; a half-written artifact is gone."""

    code, exit_status, retryable = "RUNTIME_STORAGE_FAILED", 2, True


class Interrupted(BackpropError):
    """The run was stopped by the user or the system."""

    code, exit_status = "RUNTIME_INTERRUPTED", 130


class TimeLimit(BackpropError):
    """The run took longer than max_seconds; what it has done is kept, and it can be resumed."""

    code, exit_status = "RUNTIME_TIME_LIMIT", 3


class Unexpected(BackpropError):
    """A fault of ours that no other code describes."""

    code, exit_status = "RUNTIME_UNEXPECTED", 2


# STATE_: what is on disk does not allow it


class ArtifactMissing(BackpropError):
    """The store does not hold this artifact."""

    code, exit_status = "STATE_ARTIFACT_MISSING", 2


class ArtifactDamaged(BackpropError):
    """A stored file is not what its digest says."""

    code, exit_status = "STATE_ARTIFACT_DAMAGED", 2


class CheckpointInvalid(BackpropError):
    """A checkpoint does not verify or belongs to another job."""

    code, exit_status = "STATE_CHECKPOINT_INVALID", 2


class LineConflict(BackpropError):
    """The line cannot be continued this way: another base, or somebody was faster."""

    code = "STATE_LINE_CONFLICT"


class NotGated(BackpropError):
    """The gate has refused this version of a line, or has never judged it."""

    code = "STATE_NOT_GATED"


class NameTaken(BackpropError):
    """The name is used by something that is not ours."""

    code = "STATE_NAME_TAKEN"


class HistoryDamaged(BackpropError):
    """MLflow's database in the home is broken, or of another version of MLflow; the journals still have every run."""

    code, exit_status = "STATE_HISTORY_DAMAGED", 2


class ServerActive(BackpropError):
    """Another `serve` of this home is running."""

    code = "STATE_SERVER_ACTIVE"


class RunActive(BackpropError):
    """Another process is working on this run."""

    code = "STATE_RUN_ACTIVE"
