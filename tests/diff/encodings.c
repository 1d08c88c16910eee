/* Encodings that the decoder takes for undefined, over the whole opcode space: the host must raise #UD for them too. */
#include <stdio.h>
#include <string.h>
#include "diff.h"
#include "x86/decode/table.h"

enum { LEGACY_MAPS = 4, VEX_MAPS = 3, MODES = LEGACY_MAPS + VEX_MAPS };

static const u8 prefix_of[4] = {0, 0x66, 0xf3, 0xf2};

/* One encoding: map, mandatory prefix, REX.W or VEX.W, VEX.L, opcode, ModRM. */
static unsigned put(u8 *p, unsigned map, unsigned bits, u8 opcode, u8 modrm) {
  unsigned n = 0, pp = bits & 3, w = bits >> 2 & 1, l = bits >> 3 & 1;
  if (map >= LEGACY_MAPS) {
    p[n++] = 0xc4;
    p[n++] = (u8)(0xe0 | (map - LEGACY_MAPS + 1));
    p[n++] = (u8)(w << 7 | 0x78 | l << 2 | pp);
  } else {
    if (pp) p[n++] = prefix_of[pp];
    if (w) p[n++] = 0x48;
    if (map) p[n++] = 0x0f;
    if (map == 2) p[n++] = 0x38;
    if (map == 3) p[n++] = 0x3a;
  }
  p[n++] = opcode;
  p[n++] = modrm;
  return n;
}

static void registers(struct diff_case *k) {
  for (unsigned n = 0; n < 16; n++) k->in.gpr[n] = ARENA_BASE + PAGE_SIZE + 512 + 64 * n;
  k->in.rflags = 0x202;
}

static u64 try_one(const ZydisDecoder *d, struct diff_case *k, struct diff_state *out, unsigned map, unsigned bits, unsigned opcode, unsigned modrm) {
  static u8 told[MODES][256];
  memset(k->code, 0xcc, sizeof(k->code));
  put(k->code, map, bits, (u8)opcode, (u8)modrm);
  ZyanStatus s = ZydisDecoderDecodeFull(d, k->code, 15, &k->insn, k->ops);
  if (ZYAN_SUCCESS(s) || s == ZYDIS_STATUS_NO_MORE_DATA) return 0;
  k->at = host_next_slot();
  k->len = 15;
  k->branch = true;
  k->mode = 64;
  registers(k);
  host_run(k, out);
  if (out->vector == 6 || k->insn.mnemonic == ZYDIS_MNEMONIC_VMCALL) return 0;
  if (!told[map][opcode]++) {
    printf("not undefined on the host:");
    for (unsigned n = 0; n < 6; n++) printf(" %02x", k->code[n]);
    printf(" ... vector %d, %lld bytes ran\n", out->vector, (long long)(out->ip - k->at));
  }
  return 1;
}

u64 check_encodings(void) {
  static struct diff_case k;
  static struct diff_state out;
  ZydisDecoder d;
  u64 differences = 0;
  x86_decoder_init(&d, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
  for (unsigned map = 0; map < MODES; map++)
    for (unsigned bits = 0; bits < (map < LEGACY_MAPS ? 8u : 16u); bits++)
      for (unsigned opcode = 0; opcode < 256; opcode++)
        for (unsigned modrm = 0; modrm < 256; modrm++) differences += try_one(&d, &k, &out, map, bits, opcode, modrm);
  return differences;
}
