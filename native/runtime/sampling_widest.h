#pragma once

// Loops whose elements do not meet may be compiled for several vector widths: products and sums
// stay apart (-ffp-contract=off), so every width gives the same bits.
#if !defined(INSULA_WIDEST) && defined(__x86_64__) && defined(__gnu_linux__) &&                    \
    !defined(__SANITIZE_ADDRESS__)
#if __has_attribute(target_clones)
#define INSULA_WIDEST __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#endif
#ifndef INSULA_WIDEST
#define INSULA_WIDEST
#endif
