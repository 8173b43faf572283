// The AMX level with emulated tiles, for machines with AVX-512 alone.
#define INSULA_EMULATE_TILES 1
#include "../../isa/amx.cpp"
