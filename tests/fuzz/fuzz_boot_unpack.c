/* Fuzz target: the decompressors of kernel payloads. */
#include <stdint.h>
#include <stdlib.h>

#include "tests/vmm/unit/pack.h"
#include "vmm/boot/boot_priv.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
const uint8_t *fuzz_seed_input(unsigned i, size_t *size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  const char *name;
  size_t len;
  free(unpack_payload(data, size, &len, &name));
  return 0;
}

const uint8_t *fuzz_seed_input(unsigned i, size_t *size) {
  static uint8_t packed[65536];
  uint8_t plain[4096];
  if (i >= PACKERS) return NULL;
  for (size_t n = 0; n < sizeof(plain); n++) plain[n] = (uint8_t)(n * n >> 5);
  *size = packers[i].pack(plain, sizeof(plain), packed, sizeof(packed));
  return packed;
}
