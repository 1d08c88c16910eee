/* Fuzz target: the instruction decoder.  The input is a code size, a CPUID and instruction bytes, decoded one after another.
 *
 * Checked: every byte sequence decodes to something that can be run; a length is one that a processor knows; and the decoder says
 * "more bytes" for exactly the prefixes of an instruction, whatever lies behind it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "fuzz_code.h"
#include "x86/cpuid/cpuid.h"
#include "x86/insn.h"

enum { MAX_LENGTH = 15 };

#define fail_unless(condition) ((condition) ? (void)0 : fail(#condition))

static void fail(const char *what) {
  fprintf(stderr, "not so: %s\n", what);
  abort();
}

/* No feature, every feature (also what this host does not have), the engine's. */
static void choose_features(struct x86_cpuid *id, uint8_t choice) {
  memset(id, 0, sizeof(*id));
  for (unsigned f = 0; f < X86_FEATURE_COUNT; f++)
    if (choice % 3 == 1 || (choice % 3 == 2 && x86_engine_has((enum x86_feature)f))) id->features[f / 64] |= BIT(f % 64);
}

/* On the heap with exactly `avail` bytes: a sanitizer sees every byte too far. */
static int decode(const struct x86_decode_ctx *ctx, const uint8_t *bytes, unsigned avail, unsigned off, struct x86_insn *i) {
  uint8_t *copy = malloc(avail ? avail : 1);
  if (!copy) exit(1);
  memcpy(copy, bytes, avail);
  memset(i, 0, sizeof(*i));
  i->off = (u16)off;
  int len = x86_decode(ctx, copy, avail, i);
  free(copy);
  return len;
}

static void check_fields(const struct x86_insn *i, int len) {
  fail_unless(i->fn != NULL);
  fail_unless(i->len == len && i->next == i->off + len);
  fail_unless(i->base < X86_NREGS && i->index < X86_NREGS && i->shift <= 3 && i->seg < 6);
}

/* One instruction; returns its length, 0 at the end of the bytes. */
static int check(const struct x86_decode_ctx *ctx, const uint8_t *bytes, unsigned avail, unsigned off) {
  struct x86_insn whole, part;
  int len = decode(ctx, bytes, avail, off, &whole);
  fail_unless(len >= 0 && len <= MAX_LENGTH && (unsigned)len <= avail);
  if (!len) {
    fail_unless(avail < MAX_LENGTH);
    return 0;
  }
  check_fields(&whole, len);
  unsigned most = avail < MAX_LENGTH ? avail : MAX_LENGTH;
  if (whole.fn == x86_exec_ud && (unsigned)len == most) return 1; /* undefined: how many bytes it takes to know is not told */
  for (int n = 0; n < len; n++) fail_unless(!decode(ctx, bytes, (unsigned)n, off, &part));
  fail_unless(decode(ctx, bytes, (unsigned)len, off, &part) == len);
  fail_unless(!memcmp(&whole, &part, sizeof(whole)));
  return len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const uint8_t modes[] = {X86_MODE_16, X86_MODE_32, X86_MODE_64, X86_MODE_16 | X86_MODE_REAL,
                                  X86_MODE_32 | X86_MODE_REAL};
  static struct x86_cpuid cpuid;
  if (size < 2) return 0;
  choose_features(&cpuid, data[1]);
  struct x86_decode_ctx ctx = {.mode = modes[data[0] % sizeof(modes)], .cpuid = &cpuid};
  size_t at = 2;
  for (int len = 1; len && at < size; at += (size_t)len) {
    size_t rest = size - at;
    len = check(&ctx, data + at, rest < 64 ? (unsigned)rest : 64, (unsigned)(at & 0x7ff));
  }
  return 0;
}

/* Each opcode map in each code size. */
const uint8_t *fuzz_seed_input(unsigned i, size_t *size) {
  static uint8_t input[512];
  unsigned maps = fuzz_opcode_maps();
  if (i >= 3 * maps) return NULL;
  input[0] = (uint8_t)(i / maps);
  input[1] = (uint8_t)(1 + i % 2);
  *size = 2 + fuzz_opcodes(i % maps, i, input + 2, sizeof(input) - 2);
  return input;
}
