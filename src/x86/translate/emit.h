/* Host instruction encoding: bytes, ModRM operands, and the few instructions the translator makes itself (Intel SDM Vol. 2A,
 * chapter 2). */
#ifndef X86_TRANSLATE_EMIT_H
#define X86_TRANSLATE_EMIT_H

#include <string.h>
#include "base/types.h"

/* Host registers. */
enum {
  H_RAX,
  H_RCX,
  H_RDX,
  H_RBX,
  H_RSP,
  H_RBP,
  H_RSI,
  H_RDI,
  H_R8,
  H_R9,
  H_R10,
  H_R11,
  H_R12,
  H_R13,
  H_R14,
  H_R15,
  H_NONE = 16
};

struct emitter {
  u8 *p, *end;     /* where the next byte goes; beyond end nothing is written */
  ptrdiff_t to_rx; /* from where it is written to where it runs */
};

/* A memory operand; gs: relative to the vCPU. */
struct em_mem {
  u8 base, index, shift;
  bool gs;
  s32 disp;
};
#define EM_GS(offset)         ((struct em_mem){.base = H_NONE, .index = H_NONE, .gs = true, .disp = (s32)(offset)})
#define EM_GS_AT(reg, offset) ((struct em_mem){.base = (reg), .index = H_NONE, .gs = true, .disp = (s32)(offset)})
#define EM_AT(reg, offset)    ((struct em_mem){.base = (reg), .index = H_NONE, .disp = (s32)(offset)})

static inline void em8(struct emitter *e, unsigned v) {
  if (e->p < e->end) *e->p = (u8)v;
  e->p++;
}
static inline void em32(struct emitter *e, u32 v) {
  if (e->p + 4 <= e->end) memcpy(e->p, &v, 4);
  e->p += 4;
}
static inline void em64(struct emitter *e, u64 v) {
  if (e->p + 8 <= e->end) memcpy(e->p, &v, 8);
  e->p += 8;
}
static inline bool em_overflow(const struct emitter *e) {
  return e->p > e->end;
}

/* Opcodes are 1 to 3 bytes, first byte highest: 0x8b, 0x0fb6, 0x0f38f0. */
static inline void em_opcode(struct emitter *e, u32 opcode) {
  if (opcode > 0xffff) em8(e, opcode >> 16);
  if (opcode > 0xff) em8(e, opcode >> 8 & 0xff);
  em8(e, opcode & 0xff);
}

/* ModRM, SIB and displacement of a memory operand.  wide: no displacement of 8 bits (EVEX would scale it). */
static inline void em_modrm_disp(struct emitter *e, unsigned reg, struct em_mem m, bool wide) {
  unsigned r = (reg & 7) << 3;
  if (m.base == H_NONE && m.index == H_NONE) { /* no base: absolute */
    em8(e, r | 4);
    em8(e, 0x25);
    em32(e, (u32)m.disp);
    return;
  }
  if (m.base == H_NONE) {
    em8(e, r | 4);
    em8(e, (unsigned)m.shift << 6 | (m.index & 7u) << 3 | 5);
    em32(e, (u32)m.disp);
    return;
  }
  bool sib = m.index != H_NONE || (m.base & 7) == 4;
  unsigned mod = !m.disp && (m.base & 7) != 5 ? 0 : !wide && m.disp >= -128 && m.disp <= 127 ? 0x40 : 0x80;
  em8(e, mod | r | (sib ? 4u : m.base & 7u));
  if (sib) em8(e, (unsigned)m.shift << 6 | (m.index == H_NONE ? 4u : m.index & 7u) << 3 | (m.base & 7u));
  if (mod == 0x40) em8(e, (u8)m.disp);
  if (mod == 0x80) em32(e, (u32)m.disp);
}

static inline void em_modrm_mem(struct emitter *e, unsigned reg, struct em_mem m) {
  em_modrm_disp(e, reg, m, false);
}

static inline unsigned em_rex_mem(unsigned reg, struct em_mem m) {
  return (reg & 8) >> 1 | (m.index != H_NONE && (m.index & 8) ? 2 : 0) | (m.base != H_NONE && (m.base & 8) ? 1 : 0);
}

/* op reg, mem or op mem, reg; w: 64 bits */
static inline void em_mem(struct emitter *e, unsigned w, u32 opcode, unsigned reg, struct em_mem m) {
  unsigned rex = (w ? 8 : 0) | em_rex_mem(reg, m);
  if (m.gs) em8(e, 0x65);
  if (rex) em8(e, 0x40 | rex);
  em_opcode(e, opcode);
  em_modrm_mem(e, reg, m);
}
static inline void em_reg(struct emitter *e, unsigned w, u32 opcode, unsigned reg, unsigned rm) {
  unsigned rex = (w ? 8 : 0) | (reg & 8) >> 1 | (rm & 8) >> 3;
  if (rex) em8(e, 0x40 | rex);
  em_opcode(e, opcode);
  em8(e, 0xc0 | (reg & 7) << 3 | (rm & 7));
}

/* The same where rm is a register of 8 bits: any of them has a number with REX. */
static inline void em_byte_rm(struct emitter *e, u32 opcode, unsigned reg, unsigned rm) {
  em8(e, 0x40 | (reg & 8) >> 1 | (rm & 8) >> 3);
  em_opcode(e, opcode);
  em8(e, 0xc0 | (reg & 7) << 3 | (rm & 7));
}

/* The same with operands of 8 to 64 bits. */
static inline void em_sized_reg(struct emitter *e, unsigned bits, u32 opcode, unsigned reg, unsigned rm) {
  unsigned rex = (bits == 64 ? 8 : 0) | (reg & 8) >> 1 | (rm & 8) >> 3;
  if (bits == 16) em8(e, 0x66);
  if (rex || bits == 8) em8(e, 0x40 | rex);
  em_opcode(e, opcode);
  em8(e, 0xc0 | (reg & 7) << 3 | (rm & 7));
}

static inline void em_mov(struct emitter *e, unsigned dst, unsigned src) {
  if (dst != src) em_reg(e, 1, 0x8b, dst, src);
}
static inline void em_load(struct emitter *e, unsigned dst, struct em_mem m) {
  em_mem(e, 1, 0x8b, dst, m);
}
static inline void em_store(struct emitter *e, struct em_mem m, unsigned src) {
  em_mem(e, 1, 0x89, src, m);
}
static inline void em_lea(struct emitter *e, unsigned dst, struct em_mem m) {
  em_mem(e, 1, 0x8d, dst, m);
}
static inline void em_mov_imm32(struct emitter *e, unsigned dst, u32 v) { /* zero-extends */
  if (dst & 8) em8(e, 0x41);
  em8(e, 0xb8 | (dst & 7));
  em32(e, v);
}
static inline void em_mov_imm64(struct emitter *e, unsigned dst, u64 v) {
  em8(e, 0x48 | (dst & 8) >> 3);
  em8(e, 0xb8 | (dst & 7));
  em64(e, v);
}

/* Jumps forward: the address of the displacement, for em_here(). */
static inline u8 *em_jcc(struct emitter *e, unsigned cc) {
  em8(e, 0x0f);
  em8(e, 0x80 | cc);
  em32(e, 0);
  return e->p - 4;
}
static inline u8 *em_jmp(struct emitter *e) {
  em8(e, 0xe9);
  em32(e, 0);
  return e->p - 4;
}
static inline u8 *em_call(struct emitter *e) {
  em8(e, 0xe8);
  em32(e, 0);
  return e->p - 4;
}
static inline void em_patch(struct emitter *e, u8 *rel32, const u8 *target) {
  s32 d = (s32)(target - (rel32 + 4));
  if (rel32 + 4 <= e->end) memcpy(rel32, &d, 4);
}
static inline void em_here(struct emitter *e, u8 *rel32) {
  em_patch(e, rel32, e->p);
}
static inline void em_jmp_to(struct emitter *e, const u8 *target) {
  em_patch(e, em_jmp(e), target);
}

enum { CC_B = 2, CC_AE = 3, CC_E = 4, CC_NE = 5, CC_BE = 6, CC_A = 7 };

/* The displacement that comes after so many bytes will be patched while others run it: written at once if it lies in eight aligned ones (AMD APM Vol. 2 7.3.2; Intel SDM
 * Vol. 3A 8.1.1 asks for less). */
static inline unsigned em_misaligned(const struct emitter *e, unsigned bytes) {
  unsigned at = (uintptr_t)(e->p + bytes) & 7;
  return at > 4 ? 8 - at : 0;
}
static inline void em_align_displacement(struct emitter *e, unsigned bytes) {
  static const u8 nops[4][3] = {{0}, {0x90}, {0x66, 0x90}, {0x0f, 0x1f, 0x00}};
  unsigned n = em_misaligned(e, bytes);
  for (unsigned k = 0; k < n; k++) em8(e, nops[n][k]);
}

#endif
