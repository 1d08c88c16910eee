/* A small VM over the public API: opening, placing code, running. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <cmocka.h>
#include "guest.h"

#define PML4     0x1000u
#define PDPT     0x2000u
#define PD       0x3000u
#define GDT      0x4000u
#define IDT      0x4100u
#define HANDLERS 0x4800u

int guest_ioctl(int fd, unsigned long request, void *arg) {
  int r = uvirt_ioctl(fd, request, arg);
  return r == -1 ? -errno : r;
}

struct kvm_cpuid_entry2 *cpuid_entry(struct cpuid_table *t, uint32_t function, uint32_t index) {
  for (uint32_t k = 0; k < t->head.nent; k++)
    if (t->entries[k].function == function && t->entries[k].index == index) return &t->entries[k];
  return NULL;
}

/* Protection keys where only the engine has them. */
static void add_emulated_keys(struct guest *g, struct cpuid_table *t) {
  struct cpuid_table emulated = {.head = {.nent = ROOM}};
  assert_int_equal(guest_ioctl(g->sys, KVM_GET_EMULATED_CPUID, &emulated), 0);
  if (!(cpuid_entry(&emulated, 7, 0)->ecx & 8)) return;
  cpuid_entry(t, 7, 0)->ecx |= 8;
  cpuid_entry(t, 0xd, 0)->eax |= 0x200;
  cpuid_entry(t, 0xd, 0)->ecx = 2688 + 8;
  t->entries[t->head.nent++] =
      (struct kvm_cpuid_entry2){.function = 0xd, .index = 9, .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX, .eax = 8, .ebx = 2688};
}

void guest_supported(struct guest *g, struct cpuid_table *t) {
  memset(t, 0, sizeof(*t));
  t->head.nent = ROOM;
  assert_int_equal(guest_ioctl(g->sys, KVM_GET_SUPPORTED_CPUID, t), 0);
  add_emulated_keys(g, t);
}

static void open_vm(struct guest *g, unsigned cpus, bool cpuid, bool irqchip) {
  static struct cpuid_table table;
  memset(g, 0, sizeof(*g));
  g->cpus = cpus;
  g->sys = uvirt_open("/dev/kvm", O_RDWR);
  assert_true(g->sys >= 0);
  g->vm = guest_ioctl(g->sys, KVM_CREATE_VM, NULL);
  assert_true(g->vm >= 0);
  g->memory = mmap(NULL, GUEST_MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct kvm_userspace_memory_region m = {.memory_size = GUEST_MEMORY, .userspace_addr = (uintptr_t)g->memory};
  assert_int_equal(guest_ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &m), 0);
  if (irqchip) assert_int_equal(guest_ioctl(g->vm, KVM_CREATE_IRQCHIP, NULL), 0);
  if (cpuid) guest_supported(g, &table);
  for (unsigned k = 0; k < cpus; k++) {
    g->cpu[k] = guest_ioctl(g->vm, KVM_CREATE_VCPU, (void *)(uintptr_t)k);
    assert_true(g->cpu[k] >= 0);
    size_t size = (size_t)guest_ioctl(g->sys, KVM_GET_VCPU_MMAP_SIZE, NULL);
    g->run[k] = uvirt_mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, g->cpu[k], 0);
    assert_ptr_not_equal(g->run[k], MAP_FAILED);
    if (cpuid) assert_int_equal(guest_ioctl(g->cpu[k], KVM_SET_CPUID2, &table), 0);
  }
}

void guest_open(struct guest *g, unsigned cpus, bool cpuid) {
  open_vm(g, cpus, cpuid, false);
}
void guest_open_irqchip(struct guest *g, unsigned cpus) {
  open_vm(g, cpus, true, true);
}

void guest_close(struct guest *g) {
  size_t size = (size_t)guest_ioctl(g->sys, KVM_GET_VCPU_MMAP_SIZE, NULL);
  for (unsigned k = 0; k < g->cpus; k++) {
    munmap(g->run[k], size);
    uvirt_close(g->cpu[k]);
  }
  uvirt_close(g->vm);
  uvirt_close(g->sys);
  munmap(g->memory, GUEST_MEMORY);
}

static void place(struct guest *g, unsigned cpu, const void *begin, const void *end) {
  struct kvm_regs r = {.rip = GUEST_CODE, .rsp = GUEST_STACK, .rflags = 2};
  memcpy(g->memory + GUEST_CODE, begin, (size_t)((const char *)end - (const char *)begin));
  assert_int_equal(guest_ioctl(g->cpu[cpu], KVM_SET_REGS, &r), 0);
}

void guest_code16(struct guest *g, const void *begin, const void *end) {
  struct kvm_sregs s;
  assert_int_equal(guest_ioctl(g->cpu[0], KVM_GET_SREGS, &s), 0);
  s.cs.base = s.cs.selector = 0;
  assert_int_equal(guest_ioctl(g->cpu[0], KVM_SET_SREGS, &s), 0);
  place(g, 0, begin, end);
}

static void identity_map(struct guest *g) {
  uint64_t *pml4 = (uint64_t *)(g->memory + PML4), *pdpt = (uint64_t *)(g->memory + PDPT), *pd = (uint64_t *)(g->memory + PD);
  pml4[0] = PDPT | 7;
  pdpt[0] = PD | 7;
  pd[0] = 0x87; /* the first 2 MiB */
}

void guest_code64(struct guest *g, unsigned cpu, const void *begin, const void *end) {
  struct kvm_sregs s;
  identity_map(g);
  assert_int_equal(guest_ioctl(g->cpu[cpu], KVM_GET_SREGS, &s), 0);
  s.cs = (struct kvm_segment){.limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
  s.ds = s.es = s.fs = s.gs = s.ss =
      (struct kvm_segment){.limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
  s.cr3 = PML4;
  s.cr4 = 0x20;
  s.cr0 = 0x80000031;
  s.efer = 0x500;
  assert_int_equal(guest_ioctl(g->cpu[cpu], KVM_SET_SREGS, &s), 0);
  place(g, cpu, begin, end);
}

static void word(struct guest *g, uint32_t at, uint64_t v) {
  memcpy(g->memory + at, &v, sizeof(v));
}

void guest_code32_pae(struct guest *g, const void *begin, const void *end) {
  struct kvm_sregs s;
  word(g, PAE_PDPT, 0x6a001), word(g, PAE_PDPT + 8, 0x6d001);
  word(g, 0x6a000, 0x83); /* identity */
  word(g, 0x6d000, 0x6e003), word(g, 0x6e000, PAE_PAGE_A | 3);
  word(g, PAE_PDPTE_B - 1, 0x6c003), word(g, 0x6c000, PAE_PAGE_B | 3);
  word(g, PAE_PAGE_A, 0xa), word(g, PAE_PAGE_B, 0xb);
  assert_int_equal(guest_ioctl(g->cpu[0], KVM_GET_SREGS, &s), 0);
  s.cs = (struct kvm_segment){.limit = ~0u, .selector = 24, .type = 11, .present = 1, .s = 1, .db = 1, .g = 1};
  s.ds = s.es = s.fs = s.gs = s.ss =
      (struct kvm_segment){.limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
  s.cr3 = PAE_PDPT;
  s.cr4 = 0x20;
  s.cr0 = 0x80000031;
  s.efer = 0;
  assert_int_equal(guest_ioctl(g->cpu[0], KVM_SET_SREGS, &s), 0);
  place(g, 0, begin, end);
}

void guest_catch_exceptions(struct guest *g, bool mode64) {
  struct kvm_sregs s;
  word(g, GDT + 8, 0x00af9b000000ffff);
  word(g, GDT + 16, 0x00cf93000000ffff);
  word(g, GDT + 24, 0x00cf9b000000ffff);
  for (unsigned v = 0; v < 32; v++) {
    const uint8_t handler[3] = {0xb3, (uint8_t)(0x80 | v), 0xf4}; /* mov $v, %bl; hlt */
    memcpy(g->memory + HANDLERS + 4 * v, handler, sizeof(handler));
    uint64_t gate = (HANDLERS + 4 * v) | (mode64 ? 8ull : 24ull) << 16 | 0x8e00ull << 32;
    if (!mode64)
      word(g, IDT + 8 * v, gate);
    else
      word(g, IDT + 16 * v, gate), word(g, IDT + 16 * v + 8, 0);
  }
  assert_int_equal(guest_ioctl(g->cpu[0], KVM_GET_SREGS, &s), 0);
  s.gdt.base = GDT, s.gdt.limit = 31;
  s.idt.base = IDT, s.idt.limit = 0x1ff;
  assert_int_equal(guest_ioctl(g->cpu[0], KVM_SET_SREGS, &s), 0);
}

int guest_run_vector(struct guest *g) {
  assert_int_equal(guest_run(g, 0), KVM_EXIT_HLT);
  uint64_t rbx = guest_regs(g, 0).rbx;
  return rbx & 0x80 ? (int)(rbx & 0x1f) : -1;
}

int guest_run(struct guest *g, unsigned cpu) {
  int r = guest_ioctl(g->cpu[cpu], KVM_RUN, NULL);
  return r < 0 ? r : (int)g->run[cpu]->exit_reason;
}

struct one_msr {
  struct kvm_msrs head;
  struct kvm_msr_entry entry;
};

uint64_t guest_get_msr(struct guest *g, unsigned cpu, uint32_t index) {
  struct one_msr m = {.head = {.nmsrs = 1}, .entry = {.index = index}};
  assert_int_equal(guest_ioctl(g->cpu[cpu], KVM_GET_MSRS, &m), 1);
  return m.entry.data;
}

bool guest_set_msr(struct guest *g, unsigned cpu, uint32_t index, uint64_t value) {
  struct one_msr m = {.head = {.nmsrs = 1}, .entry = {.index = index, .data = value}};
  return guest_ioctl(g->cpu[cpu], KVM_SET_MSRS, &m) == 1;
}

struct kvm_regs guest_regs(struct guest *g, unsigned cpu) {
  struct kvm_regs r;
  assert_int_equal(guest_ioctl(g->cpu[cpu], KVM_GET_REGS, &r), 0);
  return r;
}
