/* The listing of a translation.
 *
 *   #12 guest:do_idle+1f (ffffffff810e5f1f, gpa 10e5f1f), supervisor: 3 instructions, 11 bytes to 148 at 0x7f12a4003a40
 *                                                       entries
 *                                                         +0    mov rax, qword ptr gs:[0x150]            ; core.gate
 *   ffffffff810e5f1f  test byte ptr [rbx+0x2], 0x8      +2c   lea rax, [rbx+0x2]
 *
 * Host addresses count from the start of the translation.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "x86/translate/fields.h"
#include "x86/translate/private.h"
#include "x86/translate/trace.h"

#define LEFT_WIDTH 58 /* of the guest's column */
#define TEXT_WIDTH 48 /* of a host instruction, before a comment */
#define TEXT_MAX   96

struct listing {
  FILE *out;
  const struct x86_code *code;
  u64 lin;
  ZydisDecoder decoder; /* of the host's code */
  ZydisDecoder guest;
  ZydisFormatter formatter;
};

/* ---- one instruction ---- */

static void disassemble(const struct listing *l, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops, u64 address,
                        char text[TEXT_MAX]) {
  if (ZYAN_FAILED(
          ZydisFormatterFormatInstruction(&l->formatter, z, ops, z->operand_count_visible, text, TEXT_MAX, address, NULL)))
    snprintf(text, TEXT_MAX, "?");
}

static void guest_text(const struct listing *l, unsigned k, char text[TEXT_MAX]) {
  const struct x86_block *b = l->code->block;
  ZydisDecodedInstruction z;
  ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
  if (ZYAN_FAILED(ZydisDecoderDecodeFull(&l->guest, b->bytes + b->insn[k].off, b->insn[k].len, &z, ops)))
    snprintf(text, TEXT_MAX, "?");
  else
    disassemble(l, &z, ops, l->lin + b->insn[k].off, text);
}

/* ---- what a host instruction is about ---- */

/* The fields of the vCPU that it reaches, or the word at the gate. */
static void explain_memory(const ZydisDecodedOperand *op, char comment[TEXT_MAX]) {
  if (op->mem.base == ZYDIS_REGISTER_RIP)
    snprintf(comment, TEXT_MAX, "epoch of the block");
  else if (op->mem.segment == ZYDIS_REGISTER_GS)
    field_name(op->mem.disp.value, op->mem.base != ZYDIS_REGISTER_NONE, comment);
}

/* Addresses of the translator's own. */
static void explain_immediate(const struct listing *l, u64 value, char comment[TEXT_MAX]) {
  const struct x86_block *b = l->code->block;
  for (unsigned k = 0; k < b->n; k++) {
    char text[TEXT_MAX];
    if (value != (u64)(uintptr_t)&b->insn[k]) continue;
    guest_text(l, k, text);
    snprintf(comment, TEXT_MAX, "%.*s", TEXT_MAX - 1, text);
  }
  if (value == (u64)(uintptr_t)l->code) snprintf(comment, TEXT_MAX, "this translation");
}

static void explain(const struct listing *l, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *ops,
                    char comment[TEXT_MAX]) {
  *comment = 0;
  for (unsigned n = 0; n < z->operand_count_visible; n++) {
    if (ops[n].type == ZYDIS_OPERAND_TYPE_MEMORY && z->mnemonic != ZYDIS_MNEMONIC_LEA) explain_memory(&ops[n], comment);
    if (ops[n].type == ZYDIS_OPERAND_TYPE_IMMEDIATE && ops[n].size == 64) explain_immediate(l, ops[n].imm.value.u, comment);
  }
}

/* ---- lines ---- */

/* Host code from one offset to another; `left` stands beside its first line. */
static void put_range(const struct listing *l, const char *left, unsigned from, unsigned to) {
  if (from == to) fprintf(l->out, "%s\n", left);
  while (from < to) {
    ZydisDecodedInstruction z;
    ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
    char text[TEXT_MAX], comment[TEXT_MAX];
    if (ZYAN_FAILED(ZydisDecoderDecodeFull(&l->decoder, l->code->start + from, to - from, &z, ops))) {
      fprintf(l->out, "%-*s  +%-5x (%u bytes that are no instruction)\n", LEFT_WIDTH, left, from, to - from);
      return;
    }
    disassemble(l, &z, ops, from, text);
    explain(l, &z, ops, comment);
    fprintf(l->out, *comment ? "%-*s  +%-5x %-*s ; %s\n" : "%-*s  +%-5x %.*s\n", LEFT_WIDTH, left, from,
            *comment ? TEXT_WIDTH : TEXT_MAX, text, comment);
    left = "";
    from += z.length;
  }
}

static void put_head(const struct listing *l, const char *name, u64 number) {
  static const char *const rights[] = {
      [TLB_SUPER] = "supervisor", [TLB_SUPER_SMAP] = "supervisor under SMAP", [TLB_USER] = "user"};
  const struct x86_code *code = l->code;
  fprintf(l->out, "#%" PRIu64 " %s (%" PRIx64 ", gpa %" PRIx64 "), %s: %u instructions, %u bytes to %u at %p\n", number, name,
          l->lin, (u64)code->block->gpa, rights[code->right], code->block->n, code->block->len,
          (unsigned)(code->end - code->start), (void *)code->start);
}

static void put_registers(FILE *out) {
  static const char *const names[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                      "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
  fprintf(out, "uvirt[%d]: guest registers in host registers:", (int)getpid());
  for (unsigned n = 0; n < 16; n++)
    if (t_mapped(n)) fprintf(out, " %s %s%s", names[n], names[T_HOME(n)], n < 15 ? "," : "");
  fprintf(out, " others in memory; rax and rcx are scratch\n\n");
}

/* A block may be there several times, one after the other: loops, and a last copy in which each memory access is checked by itself. */
static void put_body(const struct listing *l) {
  const struct x86_code *code = l->code;
  const struct x86_code_place *place = code->place;
  const struct x86_block *b = code->block;
  unsigned last = code->n_places - 1, copies = 1;
  fprintf(l->out, "%-*s  entries\n", LEFT_WIDTH, "");
  put_range(l, "", 0, place[0].at);
  for (unsigned n = 0; n < last; n++) {
    char text[TEXT_MAX], left[TEXT_MAX + 32];
    unsigned insn = place[n].insn;
    if (n && insn <= place[n - 1].insn) fprintf(l->out, "%-*s  copy %u\n", LEFT_WIDTH, "", ++copies);
    guest_text(l, insn, text);
    snprintf(left, sizeof(left), "%016" PRIx64 "  %s", l->lin + b->insn[insn].off, text);
    put_range(l, left, place[n].at, place[n + 1].at);
  }
  fprintf(l->out, "%-*s  slow paths and exits\n", LEFT_WIDTH, "");
  put_range(l, "", place[last].at, (unsigned)(code->end - code->start));
}

/* ---- the file ---- */

/* Opened for each listing, as the log is for each line: a descriptor kept open would have to survive whatever the client closes.
 */
static void append(const char *path, const char *text, size_t size) {
  bool to_stderr = path[0] == '-' && !path[1];
  int fd = to_stderr ? STDERR_FILENO : open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  for (ssize_t n; fd >= 0 && size && (n = write(fd, text, size)) > 0; size -= (size_t)n) text += n;
  if (!to_stderr && fd >= 0) close(fd);
}

void x86_trace_code(const char *path, const char *name, const struct x86_code *code, u64 lin, u64 number) {
  char *text = NULL;
  size_t size = 0;
  struct listing l = {.out = open_memstream(&text, &size), .code = code, .lin = lin};
  if (!l.out) return;
  ZydisDecoderInit(&l.decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
  l.guest = l.decoder;
  if ((code->mode & X86_MODE_SIZE) == X86_MODE_32) ZydisDecoderInit(&l.guest, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
  if ((code->mode & X86_MODE_SIZE) == X86_MODE_16) ZydisDecoderInit(&l.guest, ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
  ZydisFormatterInit(&l.formatter, ZYDIS_FORMATTER_STYLE_INTEL);
  ZydisFormatterSetProperty(&l.formatter, ZYDIS_FORMATTER_PROP_ADDR_PADDING_ABSOLUTE, ZYDIS_PADDING_DISABLED);
  ZydisFormatterSetProperty(&l.formatter, ZYDIS_FORMATTER_PROP_ADDR_PADDING_RELATIVE, ZYDIS_PADDING_DISABLED);
  ZydisFormatterSetProperty(&l.formatter, ZYDIS_FORMATTER_PROP_DISP_PADDING, ZYDIS_PADDING_DISABLED);
  ZydisFormatterSetProperty(&l.formatter, ZYDIS_FORMATTER_PROP_IMM_PADDING, ZYDIS_PADDING_DISABLED);
  ZydisFormatterSetProperty(&l.formatter, ZYDIS_FORMATTER_PROP_HEX_UPPERCASE, ZYAN_FALSE);
  if (number == 1) put_registers(l.out);
  put_head(&l, name, number);
  put_body(&l);
  fputc('\n', l.out);
  if (!fclose(l.out)) append(path, text, size);
  free(text);
}
