"""What every command may say, in English."""

TEXTS = {
    "out_of_memory": "there is not enough memory for this; close other programs, or take a smaller model or --ctx",
    "internal": "internal error, which is our fault: {kind}: {reason}; INSULA_DEBUG=1 shows where",
    "no_space_to_write": "cannot write the output: {reason}",
    "file_trouble": "{path}: {reason}",
    "system_trouble": "the system says: {reason}",
    "stdout_closed": "standard output is closed; send it somewhere",
    "see_help": "; see {command} --help",
    "no_such_option": "there is no option {option}",
    "no_such_option_close": "there is no option {option}; did you mean {close}?",
    "missing_argument": "{name} is missing",
    "option_needs_value": "{option} needs a value",
    "not_a_number": "{option} must be a number",
    "bad_value": "{option}: {reason}",
    "extra_argument": "there is an argument too many: {argument}",
    "no_such_command": "there is no command {name!r}; there are: {known}",
    "no_such_command_close": "there is no command {name!r}; did you mean {close}? there are: {known}",
    "not_utf8": "the text on the command line is not valid UTF-8",
    "stdin_not_utf8": "standard input is not valid UTF-8 (at byte {at}); is it text?",
    "input_too_long": "standard input is longer than {limit} MB, more than any context holds",
}
