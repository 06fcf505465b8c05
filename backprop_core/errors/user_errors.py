"""Errors in what the user gave: data and names (INPUT_) and configuration (CONFIG_)."""

from backprop_core.errors.root import BackpropError

# INPUT_: data, names and paths


class InputNotFound(BackpropError):
    """A file, directory or Hub dataset does not exist."""

    code = "INPUT_NOT_FOUND"


class InputValidationFailed(BackpropError):
    """The data cannot be parsed, or too many of its rows are malformed."""

    code = "INPUT_VALIDATION_FAILED"


class FormatUnknown(BackpropError):
    """The rows match no known format."""

    code = "INPUT_FORMAT_UNKNOWN"


class FormatsMixed(BackpropError):
    """A source has rows of two formats."""

    code = "INPUT_FORMATS_MIXED"


class NoRows(BackpropError):
    """A dataset has no usable rows."""

    code = "INPUT_NO_ROWS"


class NoLabelTokens(BackpropError):
    """A row has no label tokens to train on."""

    code = "INPUT_NO_LABEL_TOKENS"


class DataLimitExceeded(BackpropError):
    """A dataset is over a limit of --fail-on."""

    code = "INPUT_DATA_LIMIT_EXCEEDED"


class RunUnknown(BackpropError):
    """No run, line or adapter has this name."""

    code = "INPUT_REF_UNKNOWN"


class RowUnknown(BackpropError):
    """No row has this id or text."""

    code = "INPUT_ROW_UNKNOWN"


class PathForbidden(BackpropError):
    """A deployed run names a file outside the allowed directories."""

    code = "INPUT_PATH_FORBIDDEN"


class AddressForbidden(BackpropError):
    """A URL, or a redirect from it, leads to a cloud metadata service or a link-local address."""

    code = "INPUT_ADDRESS_FORBIDDEN"


class OutputForbidden(BackpropError):
    """A deployed run would write outside the allowed directories."""

    code = "UI_OUTPUT_DIR_FORBIDDEN"


class RefAmbiguous(BackpropError):
    """A name or prefix matches more than one run, version, artifact or row."""

    code = "INPUT_REF_AMBIGUOUS"


class InputTooLarge(BackpropError):
    """A file is larger than a page takes, or a text larger than a page or a model takes."""

    code = "INPUT_TOO_LARGE"


class FormExpired(BackpropError):
    """A form came without the token of its page, or from another site."""

    code = "INPUT_FORM_EXPIRED"


class ActionForbidden(BackpropError):
    """A user whose role is to look tried to act."""

    code = "INPUT_ACTION_FORBIDDEN"


class UserUnknown(BackpropError):
    """No user has this name, or no token this id."""

    code = "INPUT_USER_UNKNOWN"


class TooManyAttempts(BackpropError):
    """Too many attempts to sign in have failed."""

    code = "INPUT_TOO_MANY_ATTEMPTS"
    seconds = 60  # to wait


class AuthRequired(BackpropError):
    """A password or token is missing, or the service rejected it."""

    code = "INPUT_AUTH_REQUIRED"


# CONFIG_: configuration


class ConfigInvalid(BackpropError):
    """A field is unknown, of the wrong type, or out of range."""

    code = "CONFIG_INVALID"


class PlaceUnusable(BackpropError):
    """A required file or directory cannot be created, read or written."""

    code = "CONFIG_PLACE_UNUSABLE"


class StoreUnsupported(BackpropError):
    """The store URL has an unsupported scheme."""

    code = "CONFIG_STORE_UNSUPPORTED"


class QuantizationUnknown(BackpropError):
    """Unknown quantization."""

    code = "CONFIG_QUANTIZATION_UNKNOWN"


class RankMismatch(BackpropError):
    """Two adapters of different rank cannot be merged."""

    code = "CONFIG_RANK_MISMATCH"


class AdapterMismatch(BackpropError):
    """Two adapters differ in alpha, scaling, target modules or LoRA variant."""

    code = "CONFIG_ADAPTER_MISMATCH"


class RankTooLarge(BackpropError):
    """The rank is larger than a layer's input width, so A cannot have orthonormal rows."""

    code = "CONFIG_RANK_TOO_LARGE"


class VariantUnsupported(BackpropError):
    """This LoRA variant does not work with the other settings of the run."""

    code = "CONFIG_VARIANT_UNSUPPORTED"


class ChatTemplateMissing(BackpropError):
    """The tokenizer has no chat template."""

    code = "CONFIG_CHAT_TEMPLATE_MISSING"


class ChatTemplateUnusable(BackpropError):
    """The chat template fails to render, or does not end assistant turns with a stop token."""

    code = "CONFIG_CHAT_TEMPLATE_UNUSABLE"


class UnsafeModel(BackpropError):
    """Loading the model would run code: pickled weights, or code named in its config."""

    code = "CONFIG_UNSAFE_MODEL"


class ArchitectureUnsupported(BackpropError):
    """No GGUF writer supports this architecture."""

    code = "CONFIG_ARCHITECTURE_UNSUPPORTED"


class ApprovalUnattended(BackpropError):
    """Approval is required, but there is no terminal or Prefect server to ask on."""

    code = "CONFIG_APPROVAL_UNATTENDED"


class ConfirmationRequired(BackpropError):
    """Deleting needs confirmation, but there is no terminal to ask on."""

    code = "CONFIG_CONFIRMATION_REQUIRED"


class OutputExists(BackpropError):
    """The output file already exists, and no export of this model wrote it."""

    code = "INPUT_OUTPUT_EXISTS"


class BlockUnknown(BackpropError):
    """Prefect has no notification block of this name."""

    code = "CONFIG_BLOCK_UNKNOWN"


class TokenizerUnsupported(BackpropError):
    """llama.cpp would tokenize text differently from this tokenizer."""

    code = "CONFIG_TOKENIZER_UNSUPPORTED"


class TokenizerMismatch(BackpropError):
    """The tokenizer produces tokens that the model has no embedding for."""

    code = "CONFIG_TOKENIZER_MISMATCH"
