"""Lo que puede decir cualquier orden, en español."""

TEXTS = {
    "out_of_memory": "no hay memoria suficiente; cierra otros programas, o elige un modelo o un --ctx más pequeño",
    "internal": "error interno, que es culpa nuestra: {kind}: {reason}; INSULA_DEBUG=1 muestra dónde",
    "no_space_to_write": "no se puede escribir la salida: {reason}",
    "file_trouble": "{path}: {reason}",
    "system_trouble": "el sistema dice: {reason}",
    "stdout_closed": "la salida estándar está cerrada; envíala a algún sitio",
    "see_help": "; mira {command} --help",
    "no_such_option": "no existe la opción {option}",
    "no_such_option_close": "no existe la opción {option}; ¿querías decir {close}?",
    "missing_argument": "falta {name}",
    "option_needs_value": "{option} necesita un valor",
    "not_a_number": "{option} debe ser un número",
    "bad_value": "{option}: {reason}",
    "extra_argument": "sobra un argumento: {argument}",
    "no_such_command": "no existe la orden {name!r}; existen: {known}",
    "no_such_command_close": "no existe la orden {name!r}; ¿querías decir {close}? existen: {known}",
    "not_utf8": "el texto de la línea de órdenes no es UTF-8 válido",
    "stdin_not_utf8": "la entrada estándar no es UTF-8 válido (en el byte {at}); ¿es texto?",
    "input_too_long": "la entrada estándar supera los {limit} MB, más de lo que cabe en ningún contexto",
}
