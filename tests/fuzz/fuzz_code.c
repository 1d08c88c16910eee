/* Instruction bytes by opcode map. */
#include "fuzz_code.h"

/* What stands before the opcode: `len` bytes, of which the bits in `random` are chosen anew each time. */
struct map {
  uint8_t len, bytes[4], random[4];
};

enum { X87 = 0xff }; /* in place of a length: the opcode is D8 to DF */

static const struct map maps[] = {
    {0, {0}, {0}},
    {X87, {0}, {0}},
    {1, {0x66}, {0}},
    {1, {0x67}, {0}},
    {1, {0xf0}, {0}},
    {1, {0xf3}, {0}},
    {1, {0x40}, {0x0f}}, /* REX */
    {1, {0x0f}, {0}},
    {2, {0x66, 0x0f}, {0}},
    {2, {0xf2, 0x0f}, {0}},
    {2, {0xf3, 0x0f}, {0}},
    {2, {0x40, 0x0f}, {0x0f}},
    {2, {0x0f, 0x38}, {0}},
    {3, {0x66, 0x0f, 0x38}, {0}},
    {3, {0xf2, 0x0f, 0x38}, {0}},
    {2, {0x0f, 0x3a}, {0}},
    {3, {0x66, 0x0f, 0x3a}, {0}},
    /* The upper two bits behind C5, C4 and 62 stay set: in 32-bit code other values would be LDS, LES and BOUND. */
    {2, {0xc5, 0xc0}, {0, 0x3f}},
    {3, {0xc4, 0xe1, 0x00}, {0, 0x20, 0xff}},
    {3, {0xc4, 0xe2, 0x00}, {0, 0x20, 0xff}},
    {3, {0xc4, 0xe3, 0x00}, {0, 0x20, 0xff}},
    {4, {0x62, 0xf1, 0x04, 0x00}, {0, 0x30, 0xfb, 0xff}},
    {4, {0x62, 0xf2, 0x04, 0x00}, {0, 0x30, 0xfb, 0xff}},
    {4, {0x62, 0xf3, 0x04, 0x00}, {0, 0x30, 0xfb, 0xff}},
    {3, {0x8f, 0xe8, 0x00}, {0, 0x23, 0xff}}, /* XOP */
};

unsigned fuzz_opcode_maps(void) {
  return sizeof(maps) / sizeof(maps[0]);
}

/* xorshift32 */
static uint8_t next(uint32_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 17;
  *state ^= *state << 5;
  return (uint8_t)(*state >> 11);
}

size_t fuzz_opcodes(unsigned map, uint32_t seed, uint8_t *code, size_t room) {
  const struct map *m = &maps[map];
  uint32_t state = seed * 2654435761u | 1;
  size_t n = 0;
  while (room - n >= 16) {
    for (unsigned k = 0; m->len != X87 && k < m->len; k++)
      code[n++] = (uint8_t)((m->bytes[k] & ~m->random[k]) | (next(&state) & m->random[k]));
    uint8_t opcode = next(&state);
    code[n++] = m->len == X87 ? 0xd8 | (opcode & 7) : opcode;
    for (unsigned operands = next(&state) % 7; operands; operands--) code[n++] = next(&state);
  }
  return n;
}
