"""Declarations of all settings: type, limits, help, option, environment name, and whether a grid may vary the setting.

The records are frozen and refuse unknown keys and values out of range. `replace` makes a changed, validated copy. The
options of the command line, environment variables (`RWKVBATCH_TOP_P=0.5`), `--config` files, grids and documents are
derived from their fields.
"""

from rwkvbatch.config.prompting import OPEN_THINKING as OPEN_THINKING
from rwkvbatch.config.prompting import DialoguePrompt as DialoguePrompt
from rwkvbatch.config.prompting import Prompting as Prompting
from rwkvbatch.config.prompting import ReplyPrompt as ReplyPrompt
from rwkvbatch.config.prompting import Switch as Switch
from rwkvbatch.config.prompting import ThinkMode as ThinkMode
from rwkvbatch.config.prompting import TurnEnd as TurnEnd
from rwkvbatch.config.run import ENDPOINT_KEY_VARIABLE as ENDPOINT_KEY_VARIABLE
from rwkvbatch.config.run import FLAGS as FLAGS
from rwkvbatch.config.run import GRID_SETTINGS as GRID_SETTINGS
from rwkvbatch.config.run import IN_MEMORY as IN_MEMORY
from rwkvbatch.config.run import JUDGE_KEY_VARIABLE as JUDGE_KEY_VARIABLE
from rwkvbatch.config.run import LISTS as LISTS
from rwkvbatch.config.run import MAX_THREADS as MAX_THREADS
from rwkvbatch.config.run import NO_ADAPTER as NO_ADAPTER
from rwkvbatch.config.run import SETTINGS as SETTINGS
from rwkvbatch.config.run import SYSTEM_FILE as SYSTEM_FILE
from rwkvbatch.config.run import TEXTS as TEXTS
from rwkvbatch.config.run import CellSettings as CellSettings
from rwkvbatch.config.run import EndpointApi as EndpointApi
from rwkvbatch.config.run import HistoryMode as HistoryMode
from rwkvbatch.config.run import RunSettings as RunSettings
from rwkvbatch.config.run import ScriptLimits as ScriptLimits
from rwkvbatch.config.run import stands_for as stands_for
from rwkvbatch.config.sampling import MAX_COUNT as MAX_COUNT
from rwkvbatch.config.sampling import ORDERS as ORDERS
from rwkvbatch.config.sampling import PRESETS as PRESETS
from rwkvbatch.config.sampling import Order as Order
from rwkvbatch.config.sampling import ReplySettings as ReplySettings
from rwkvbatch.config.sampling import Sampling as Sampling
from rwkvbatch.config.sampling import SamplingParams as SamplingParams
from rwkvbatch.config.sampling import Stopping as Stopping
from rwkvbatch.config.sampling import preset as preset
from rwkvbatch.config.sampling import preset_settings as preset_settings
