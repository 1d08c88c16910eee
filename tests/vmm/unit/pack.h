/* Packs bytes as the Linux build packs kernels, for tests and fuzzers. */
#ifndef TESTS_VMM_UNIT_PACK_H
#define TESTS_VMM_UNIT_PACK_H

#include <stddef.h>
#include <stdint.h>

struct packer {
  const char *name;
  size_t (*pack)(const uint8_t *plain, size_t len, uint8_t *out, size_t room); /* 0 on failure */
};

enum { PACKERS = 7 };
extern const struct packer packers[PACKERS];

#endif
