# What the data plane and Python must both know, by Python's names: constants.py, protocol/wire.py
# and protocol/lane_messages.py have it too, as they must not load this module for it.
# tests/unit/test_constants.py compares the two.

from fastpump.hot.aead cimport AEAD_RAW_KEY_LEN
from fastpump.hot cimport admission as _admission
from fastpump.hot cimport constants as _constants

SHARED_CONSTANTS = {
    # constants.py
    "KEY_LEN": AEAD_RAW_KEY_LEN,
    "MAX_LANES": _constants.MAX_LANES,
    "MAX_QUEUES": _constants.MAX_QUEUES,
    "REJECT_AFTER_TIME": _constants.REJECT_AFTER_TIME_NS,
    "SECOND": _constants.SECOND_NS,
    # protocol/wire.py
    "COOKIE_REPLY_LEN": _constants.COOKIE_REPLY_LEN,
    "COOKIE_REPLY_TYPE": _constants.COOKIE_REPLY_TYPE,
    "INITIATION_LEN": _constants.INITIATION_LEN,
    "INITIATION_TYPE": _constants.INITIATION_TYPE,
    "MAC_LEN": _admission.MAC_LEN,
    "RESPONSE_LEN": _constants.RESPONSE_LEN,
    "RESPONSE_TYPE": _constants.RESPONSE_TYPE,
    "CONTROL_MARK": _constants.CONTROL_MAGIC,
    "LANE_FLAG_ECHO_REQUEST": _constants.LANE_FLAG_ECHO_REQUEST,
    "LANE_FLAG_EXTENSION": _constants.LANE_FLAG_EXTENSION,
    "LANE_FLAG_RECORD": _constants.LANE_FLAG_RECORD,
    "EXTENSION_PATH_PROBE": _constants.EXTENSION_PATH_PROBE,
    "EXTENSION_PATH_ACK": _constants.EXTENSION_PATH_ACK,
    "EXTENSION_RECORD_CUT": _constants.EXTENSION_RECORD_CUT,
    "LANE_TYPE": _constants.LANE_TYPE,
    "TRANSPORT_TYPE": _constants.TRANSPORT_TYPE,
    # protocol/lane_messages.py: Kind, Field, and where HELLO and OFFER have the field IN_USE
    "CONTROL_HELLO": _constants.CONTROL_HELLO,
    "CONTROL_OFFER": _constants.CONTROL_OFFER,
    "CONTROL_END": _constants.CONTROL_END_MARKER,
    "CONTROL_PATH_PROBE": _constants.CONTROL_PATH_PROBE,
    "CONTROL_PATH_ACK": _constants.CONTROL_PATH_ACK,
    "CONTROL_IN_USE_AT": _constants.CONTROL_IN_USE_AT,
    "CONTROL_IN_USE_FIELD": _constants.CONTROL_IN_USE_FIELD,
}
