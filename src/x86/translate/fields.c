/* The fields that translated code reaches, by offset. */
#include <stdio.h>
#include "x86/translate/fields.h"
#include "x86/x86.h"

/* count: of an array's elements, as large as one another. */
#define FIELD(name)                                                                                                              \
  { #name, offsetof(struct x86_vcpu, name), sizeof(((struct x86_vcpu *)0)->name), 1 }
#define ARRAY(name, count)                                                                                                       \
  { #name, offsetof(struct x86_vcpu, name), sizeof(((struct x86_vcpu *)0)->name), count }

static const struct field {
  const char *name;
  size_t offset, size;
  unsigned count;
} fields[] = {
    FIELD(core.gate),
    FIELD(core.requests),
    FIELD(rflags),
    FIELD(stop),
    FIELD(cpl),
    FIELD(irq_waits),
    FIELD(tlb),
    FIELD(cur),
    FIELD(cr0),
    FIELD(cr2),
    FIELD(cr3),
    FIELD(cr4),
    FIELD(kernel_gs_base),
    FIELD(tsc_aux),
    FIELD(tsc_offset),
    FIELD(tsc_scaled),
    FIELD(pkru),
    FIELD(mmu.right),
    FIELD(code.self),
    FIELD(code.page),
    FIELD(code.generation),
    FIELD(code.scratch),
    ARRAY(code.deltas, TLB_COUNT),
    FIELD(code.from),
    FIELD(code.to),
    FIELD(code.room),
    ARRAY(code.delta, X86_CODE_DELTAS),
    FIELD(code.link),
    FIELD(code.flags),
    FIELD(code.vectors),
    FIELD(code.x87),
    FIELD(code.x87_ip),
    FIELD(code.x87_page),
    FIELD(code.interpret),
    FIELD(code.load_vectors),
    FIELD(code.load_x87),
    FIELD(code.leave),
    FIELD(code.syscall),
    FIELD(code.sysret),
};

static const char *const general[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                      "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
static const char *const segments[] = {"es", "cs", "ss", "ds", "fs", "gs"};
static const char *const rights[TLB_TABLES] = {
    [TLB_SUPER] = "super", [TLB_SUPER_SMAP] = "smap", [TLB_USER] = "user", [TLB_SLOW] = "slow"};

/* Whether the offset lies in `size` bytes from here; then it is relative to them. */
static bool within(s64 *offset, size_t start, size_t size) {
  if (*offset < (s64)start || *offset >= (s64)(start + size)) return false;
  *offset -= (s64)start;
  return true;
}
#define WITHIN(offset, field) within(offset, offsetof(struct x86_vcpu, field), sizeof(((struct x86_vcpu *)0)->field))

static void name_register(s64 offset, char *name) {
  unsigned n = (unsigned)(offset / 8);
  snprintf(name, FIELD_NAME_MAX, "%s", n < 16 ? general[n] : n == X86_REG_RIP ? "rip" : "");
}

static void name_segment(s64 offset, char *name) {
  unsigned n = (unsigned)offset / sizeof(struct x86_seg);
  bool base = (unsigned)offset % sizeof(struct x86_seg) == offsetof(struct x86_seg, base);
  snprintf(name, FIELD_NAME_MAX, "%s%s", segments[n], base ? ".base" : "");
}

static void name_target(s64 offset, char *name) {
  static const char *const parts[] = {"lin", "generation", "code", "owner"};
  snprintf(name, FIELD_NAME_MAX, "code.targets[].%s", parts[offset / 8 % 4]);
}

static void name_tlb(s64 offset, char *name) {
  unsigned at = (unsigned)offset % sizeof(struct x86_tlb_entry);
  const char *part = at == offsetof(struct x86_tlb_entry, read)    ? ".read"
                     : at == offsetof(struct x86_tlb_entry, write) ? ".write"
                     : at == offsetof(struct x86_tlb_entry, delta) ? ".delta"
                                                                   : "";
  snprintf(name, FIELD_NAME_MAX, "tlb.%s[]%s", rights[(size_t)offset / (X86_TLB_SIZE * sizeof(struct x86_tlb_entry))], part);
}

void field_name(s64 offset, bool indexed, char name[FIELD_NAME_MAX]) {
  *name = 0;
  if (WITHIN(&offset, regs)) return name_register(offset, name);
  if (WITHIN(&offset, seg)) return name_segment(offset, name);
  if (indexed && WITHIN(&offset, code.targets)) return name_target(offset, name);
  if (WITHIN(&offset, mmu.tables)) return name_tlb(offset, name);
  for (size_t k = 0; k < ARRAY_SIZE(fields); k++) {
    const struct field *f = &fields[k];
    if (!within(&offset, f->offset, f->size)) continue;
    size_t each = f->size / f->count;
    if (f->count > 1)
      snprintf(name, FIELD_NAME_MAX, "%s[%u]", f->name, (unsigned)((size_t)offset / each));
    else
      snprintf(name, FIELD_NAME_MAX, "%s", f->name);
    return;
  }
}
