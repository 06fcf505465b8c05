"""Every error a user can meet: one class, one stable code, one hint what to do."""

from typing import ClassVar


class BackpropError(Exception):
    """Root of all coded errors. `message` says what and which, `hint` what to do."""

    code: ClassVar[str]
    exit_status: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.run_id: str | None = None  # the run that it ended, if it had started

    def __str__(self) -> str:
        first, _, _ = self.hint.partition("\n")
        return f"[{self.code}] {self.message}; {first}"  # what Prefect shows of a failed flow run

    def __reduce__(self) -> tuple[object, ...]:
        return (rebuild, (self.code, self.message, self.hint))


# INPUT_: the data or the name that was given


class InputNotFound(BackpropError):
    """A file, a directory or a dataset of the Hub that was named does not exist."""

    code = "INPUT_NOT_FOUND"


class InputValidationFailed(BackpropError):
    """The data cannot be read as rows, or too many of its rows are bad."""

    code = "INPUT_VALIDATION_FAILED"


class FormatUnknown(BackpropError):
    """No known row format fits the rows."""

    code = "INPUT_FORMAT_UNKNOWN"


class NoRows(BackpropError):
    """Nothing is left of a dataset."""

    code = "INPUT_NO_ROWS"


class NoLabelTokens(BackpropError):
    """A row has no token that training could learn from."""

    code = "INPUT_NO_LABEL_TOKENS"


class RunUnknown(BackpropError):
    """No run, line or adapter has this name."""

    code = "INPUT_REF_UNKNOWN"


class PathForbidden(BackpropError):
    """A run started by a deployment names a file outside of the allowed directories."""

    code = "INPUT_PATH_FORBIDDEN"


class AddressForbidden(BackpropError):
    """An address leads, by itself or by a redirect, to a cloud's metadata service or a link-local address."""

    code = "INPUT_ADDRESS_FORBIDDEN"


class OutputForbidden(BackpropError):
    """A run started by a deployment would write outside of the allowed directories."""

    code = "UI_OUTPUT_DIR_FORBIDDEN"


class RefAmbiguous(BackpropError):
    """A name or prefix means more than one thing."""

    code = "INPUT_REF_AMBIGUOUS"


class AuthRequired(BackpropError):
    """A password or token is missing, or the service refuses the one that it was given."""

    code = "INPUT_AUTH_REQUIRED"


# CONFIG_: what was asked cannot be done that way


class ConfigInvalid(BackpropError):
    """A field is unknown, of the wrong type, or out of its range."""

    code = "CONFIG_INVALID"


class StoreUnsupported(BackpropError):
    """The store's address has a scheme that is not supported."""

    code = "CONFIG_STORE_UNSUPPORTED"


class QuantizationUnknown(BackpropError):
    """No such quantization."""

    code = "CONFIG_QUANTIZATION_UNKNOWN"


class RankMismatch(BackpropError):
    """Two adapters of different rank cannot be merged."""

    code = "CONFIG_RANK_MISMATCH"


class AdapterMismatch(BackpropError):
    """Two adapters differ in alpha, scaling, target modules or kind of parameters."""

    code = "CONFIG_ADAPTER_MISMATCH"


class RankTooLarge(BackpropError):
    """A rank above the input width has no orthonormal rows."""

    code = "CONFIG_RANK_TOO_LARGE"


class VariantUnsupported(BackpropError):
    """This variant of LoRA cannot be used for such a run."""

    code = "CONFIG_VARIANT_UNSUPPORTED"


class ChatTemplateMissing(BackpropError):
    """The tokenizer has no chat template."""

    code = "CONFIG_CHAT_TEMPLATE_MISSING"


class ChatTemplateUnusable(BackpropError):
    """The chat template fails, or ends no assistant turn with a stop token."""

    code = "CONFIG_CHAT_TEMPLATE_UNUSABLE"


class UnsafeModel(BackpropError):
    """The model would run code: pickled weights, or code named in its config."""

    code = "CONFIG_UNSAFE_MODEL"


class ArchitectureUnsupported(BackpropError):
    """No writer for this architecture."""

    code = "CONFIG_ARCHITECTURE_UNSUPPORTED"


class ApprovalUnattended(BackpropError):
    """A person shall be asked before the release, and nobody can be."""

    code = "CONFIG_APPROVAL_UNATTENDED"


class BlockUnknown(BackpropError):
    """Prefect has no such notification block."""

    code = "CONFIG_BLOCK_UNKNOWN"


class TokenizerUnsupported(BackpropError):
    """llama.cpp would read text otherwise than this tokenizer."""

    code = "CONFIG_TOKENIZER_UNSUPPORTED"


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


class NameTaken(BackpropError):
    """The name is used by something that is not ours."""

    code = "STATE_NAME_TAKEN"


class ServerActive(BackpropError):
    """Another `serve` of this home is running."""

    code = "STATE_SERVER_ACTIVE"


class RunActive(BackpropError):
    """Another process is working on this run."""

    code = "STATE_RUN_ACTIVE"


def all_errors() -> dict[str, type[BackpropError]]:
    """Every code and its class, in the order of this file."""
    return {error.code: error for error in BackpropError.__subclasses__()}


def rebuild(code: str, message: str, hint: str) -> BackpropError:
    """The error that another process reported."""
    return all_errors().get(code, Unexpected)(message, hint=hint)
