// ensure(condition, message): a check for bugs in this code, on in release builds too. Not for bad input.
//
// A broken invariant in shared memory spreads to every process that maps it, so the process ends at once.
#pragma once

#include <cstdio>
#include <cstdlib>

#define ensure(condition, message)                                                                     \
  do {                                                                                                 \
    if (!(condition)) [[unlikely]] {                                                                   \
      std::fprintf(stderr, "drust: broken invariant: %s (%s) at %s:%d\n", message, #condition, __FILE__, __LINE__); \
      std::abort();                                                                                    \
    }                                                                                                  \
  } while (false)
