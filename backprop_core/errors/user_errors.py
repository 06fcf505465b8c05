"""What was asked or given is wrong: INPUT_ and CONFIG_."""

from backprop_core.errors.root import BackpropError

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


class PlaceUnusable(BackpropError):
    """A file or directory that is needed cannot be made, read or written."""

    code = "CONFIG_PLACE_UNUSABLE"


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


class ConfirmationRequired(BackpropError):
    """Something would be deleted, and there is no terminal to ask at."""

    code = "CONFIG_CONFIRMATION_REQUIRED"


class OutputExists(BackpropError):
    """A file of this name is there that an export of this model did not write."""

    code = "INPUT_OUTPUT_EXISTS"


class BlockUnknown(BackpropError):
    """Prefect has no such notification block."""

    code = "CONFIG_BLOCK_UNKNOWN"


class TokenizerUnsupported(BackpropError):
    """llama.cpp would read text otherwise than this tokenizer."""

    code = "CONFIG_TOKENIZER_UNSUPPORTED"


class TokenizerMismatch(BackpropError):
    """The tokenizer writes tokens that the model has no embedding for."""

    code = "CONFIG_TOKENIZER_MISMATCH"
