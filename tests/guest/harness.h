/* Bare-metal guest programs: one C file holds guest and host side.
 *
 * A test makes a guest, puts code into it, and runs it to its next report.  A report is an OUT to GUEST_PORT (value: which
 * checkpoint) or the arrival in a trap stub; at each the host looks at registers and memory, may change them, and goes on.  Only
 * the KVM ABI is used: uvirt's, or with UVIRT_TEST_HOST_KVM=1 the host's /dev/kvm as a reference.
 *
 * Guest code is either an assembled blob (GUEST_BLOB, any code size, loaded at GUEST_CODE), or a C function of the test itself:
 * guest_map_image() lets a 64-bit guest see the test's own pages at their own addresses.
 */
#ifndef TESTS_GUEST_HARNESS_H
#define TESTS_GUEST_HARNESS_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

/* ---- guest memory map (identity-mapped by guest_long and guest_pae) ---- */
#define GUEST_IDT    0x1000
#define GUEST_GDT    0x2000
#define GUEST_TSS    0x3000
#define GUEST_TSS2   0x4000
#define GUEST_LDT    0x5000
#define TSS_LIMIT    0x1ff  /* I/O map at 0x88: ports below 0xbb8 are open to every ring */
#define GUEST_STUBS  0x6000 /* 16 bytes a vector */
#define GUEST_CODE   0x8000
#define GUEST_USER   0x10000 /* user-accessible pages up to 0x20000 */
#define GUEST_STACK0 0x30000 /* tops: ring 0 at start, RSP0 of the TSS, IST1, user */
#define GUEST_RSP0   0x34000
#define GUEST_IST1   0x38000
#define GUEST_STACK1 0x3c000
#define GUEST_STACK3 0x1f000
#define GUEST_TABLES 0x80000 /* page tables from here */
#define GUEST_DATA   0x60000
#define GUEST_MEM    0x400000

/* ---- selectors of the GDT that guest_protected and guest_long set up ---- */
#define SEL_CODE64  0x08
#define SEL_DATA    0x10
#define SEL_CODE32  0x18
#define SEL_CODE16  0x20
#define SEL_DATA16  0x28
#define SEL_DATA3   (0x30 | 3)
#define SEL_CODE64U (0x38 | 3)
#define SEL_CODE32U (0x40 | 3)
#define SEL_TSS     0x48 /* and 0x50 in long mode */
#define SEL_LDT     0x58 /* and 0x60 in long mode */
#define SEL_TSS2    0x68
#define SEL_CONF    0x70 /* conforming code, DPL 0 */
#define SEL_CODE1   (0x78 | 1)
#define SEL_DATA1   (0x80 | 1)
#define SEL_FREE    0x88 /* the test's own from here */
#define GDT_ENTRIES 64

#define GUEST_PORT 0xe9
#define STUB_PORT  0xee

/* Descriptor access bytes and flags. */
#define D_CODE   0x9b
#define D_DATA   0x93
#define D_DPL(n) ((n) << 5)
#define D_32     0x4
#define D_64     0x2
#define D_G      0x8

/* Those that copies of a guest (copy.h) get, too. */
#define GUEST_SLOTS 8
struct guest_slot {
  unsigned space;
  u64 gpa;
  void *host;
  size_t size;
};

struct guest {
  int sys, vm, vcpu;
  struct kvm_run *run;
  size_t run_size;
  u8 *mem;
  unsigned next_table; /* page tables handed out */
  u64 cr3;
  unsigned slots;
  struct guest_slot slot[GUEST_SLOTS];
  unsigned id; /* of the vCPU */
  bool chips;
  int halts; /* descriptor of the statistics, and where the value is */
  u64 halts_at;
};

/* ---- life ---- */
struct guest *guest_new(void);
/* The same with the interrupt controllers and the PIT in the KVM. */
struct guest *guest_new_chips(void);
/* With the local APICs alone; the chips are the client's. */
struct guest *guest_new_split(void);
/* With a capability of the VM that has to be enabled before there are vCPUs. */
struct guest *guest_new_cap(u32 cap, u64 arg);
void guest_free(struct guest *g);
/* One more vCPU of the same guest; guest_free_cpu before guest_free. */
struct guest *guest_add_cpu(struct guest *g, unsigned id);
void guest_free_cpu(struct guest *g);
/* Changes one register (0 EAX to 3 EDX) of a CPUID leaf, before the vCPU runs; sub-leaf 0. */
void guest_cpuid(struct guest *g, u32 leaf, unsigned reg, u32 clear, u32 set);
/* Whether KVM_GET_SUPPORTED_CPUID shows the bit; whether the guest's table does. */
bool guest_supports(struct guest *g, u32 leaf, unsigned reg, unsigned bit);
bool guest_shows(struct guest *g, u32 leaf, unsigned reg, unsigned bit);
/* More memory, backed by `host`; space 1 is the memory seen in system management mode. */
void guest_add_slot(struct guest *g, unsigned space, u64 gpa, void *host, size_t size);
int guest_ioctl(int fd, unsigned long request, void *arg);
/* KVM_ENABLE_CAP on the VM. */
int guest_enable(struct guest *g, u32 cap, u64 arg);
/* Pages of the vCPU's descriptor. */
void *guest_map_vcpu(struct guest *g, u64 offset, size_t size);

/* ---- starting states ---- */
void guest_real(struct guest *g, u16 cs, u16 ip);
/* Flat 32-bit protected mode without paging: GDT, IDT with trap stubs (interrupt gates, DPL 0), TR and a TSS with SS0:ESP0. */
void guest_protected(struct guest *g, u32 eip);
/* 64-bit mode with the same tables, everything mapped; GUEST_USER..0x20000 with the user bit. */
void guest_long(struct guest *g, u64 rip);

/* ---- tables ---- */
/* The GDT, IDT, stubs and TSS of guest_protected or guest_long, without touching the vCPU. */
void guest_tables(struct guest *g, bool is_long);
/* The page tables of guest_long; CR3 in g->cr3. */
void guest_paging(struct guest *g);
void guest_gdt(struct guest *g, unsigned sel, u32 base, u32 limit, unsigned access, unsigned flags);
u64 guest_gdt_read(struct guest *g, unsigned sel);
void guest_gdt_raw(struct guest *g, unsigned sel, u64 lo);
/* Call and task gates. */
void guest_gate32(struct guest *g, unsigned sel, unsigned type, unsigned dpl, u16 target, u32 off, unsigned params);
/* IDT gates of the current size; type 0xe/0xf/6/7/5. */
void guest_idt32(struct guest *g, unsigned vector, unsigned type, unsigned dpl, u16 target, u32 off);
void guest_idt64(struct guest *g, unsigned vector, unsigned type, unsigned dpl, u16 target, u64 off, unsigned ist);
#define P_W 2u
#define P_U 4u
/* Maps 4 KiB pages in the running tables of guest_long. */
void guest_map(struct guest *g, u64 lin, u64 gpa, u64 size, unsigned flags);
/* The test's own image, at its own addresses; gpa 0x10000000. */
void guest_map_image(struct guest *g);
u64 guest_image_gpa(const volatile void *object);

/* ---- code ---- */
void guest_load(struct guest *g, u64 gpa, const void *data, size_t size);
#define GUEST_BLOB(name, text)                                                                                                   \
  extern const u8 name##_start[], name##_end[];                                                                                  \
  __asm__(".pushsection .guest_code, \"ax\"\n.balign 16\n.globl " #name "_start\n" #name "_start:\n" text "\n.globl " #name      \
          "_end\n" #name "_end:\n.code64\n.popsection")
#define guest_load_blob(g, name) guest_load(g, GUEST_CODE, name##_start, (size_t)(name##_end - name##_start))
/* In a blob: the guest address of a label, and a report (changes AL). */
#define AT(name, label) "(" #label " - " #name "_start + 0x8000)"
#define REPORT(n)       "mov $" #n ", %al\n out %al, $0xe9\n"

/* ---- running ---- */
/* KVM_RUN, any exit; -1 with errno for a failure. */
int guest_run(struct guest *g);
/* From another thread: until the vCPU's KVM_RUN sleeps in HLT, by its statistics; half a minute at most.  They have to be opened
 * while it does not run. */
void guest_watch_halts(struct guest *g);
void guest_wait_halted(struct guest *g);
/* One value of KVM_GET_STATS_FD on a VM or vCPU descriptor. */
u64 guest_stat(int fd, const char *name);
/* To the next report: the checkpoint number, 0x100 + vector for a trap stub, 0x1000 + exit reason for any other exit. */
unsigned guest_next(struct guest *g);
#define TRAP(vector) (0x100u + (vector))
#define EXIT(reason) (0x1000u + (reason))

struct kvm_regs guest_regs(struct guest *g);
void guest_set_regs(struct guest *g, const struct kvm_regs *r);
struct kvm_sregs guest_sregs(struct guest *g);
void guest_set_sregs(struct guest *g, const struct kvm_sregs *s);
/* The item at the guest's stack pointer + n * size, SS base included. */
u64 guest_stack(struct guest *g, unsigned n, unsigned size);
u64 guest_read(struct guest *g, u64 gpa, unsigned size);
void guest_write(struct guest *g, u64 gpa, unsigned size, u64 v);
/* Runs on behind a trap stub at another address, with the frame still on the stack. */
void guest_resume_at(struct guest *g, u64 rip);

/* ---- checks ---- */
void check_failed(const char *file, int line, const char *what, u64 got, u64 want);
#define CHECK(cond)                                                                                                              \
  do {                                                                                                                           \
    if (!(cond)) check_failed(__FILE__, __LINE__, #cond, 0, 1);                                                                  \
  } while (0)
#define CHECK_EQ(got, want)                                                                                                      \
  do {                                                                                                                           \
    u64 got_ = (u64)(got), want_ = (u64)(want);                                                                                  \
    if (got_ != want_) check_failed(__FILE__, __LINE__, #got, got_, want_);                                                      \
  } while (0)

struct guest_test {
  const char *name;
  void (*run)(void);
};
/* Runs the tests (all, or those named in argv); the exit status. */
int guest_main(int argc, char **argv, const struct guest_test *tests, unsigned n);
#define GUEST_MAIN(...)                                                                                                          \
  int main(int argc, char **argv) {                                                                                              \
    static const struct guest_test tests[] = {__VA_ARGS__};                                                                      \
    return guest_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));                                                      \
  }

#endif
