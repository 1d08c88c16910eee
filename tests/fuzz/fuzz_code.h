/* Instruction bytes that reach more of the decoder than random ones do. */
#ifndef TESTS_FUZZ_CODE_H
#define TESTS_FUZZ_CODE_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
const uint8_t *fuzz_seed_input(unsigned i, size_t *size);

/* The number of opcode maps with their prefixes: one-byte, 0F, 66 0F 38, VEX, EVEX, ... */
unsigned fuzz_opcode_maps(void);
/* Fills `code` with instructions of one map, operands and opcodes chosen by `seed`.  Returns the bytes filled, at most `room`. */
size_t fuzz_opcodes(unsigned map, uint32_t seed, uint8_t *code, size_t room);

#endif
