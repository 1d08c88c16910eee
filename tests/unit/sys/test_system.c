/* System instructions: what they check, in which order, and what they change. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include "guest.h"

enum { NONE = -1, DB = 1, UD = 6, GP = 13, PF = 14 };

/* Code at CPL 0 in 64-bit mode, the exception it ends with, and RAX where it ends without. */
/* clang-format off */
#define SYSTEM_CASES(X)                                                                                                          \
  X(cr0_high_bits, "mov %cr0, %rax; bts $32, %rax; mov %rax, %cr0; hlt", GP, 0)                                                  \
  X(cr0_nw_without_cd, "mov %cr0, %rax; bts $29, %rax; mov %rax, %cr0; hlt", GP, 0)                                              \
  X(cr0_pg_off_in_64bit, "mov %cr0, %rax; btr $31, %rax; mov %rax, %cr0; hlt", GP, 0)                                            \
  X(cr0_et_stays, "mov %cr0, %rax; btr $4, %rax; mov %rax, %cr0; mov %cr0, %rax; and $16, %eax; hlt", NONE, 16)                  \
  X(cr0_clts, "mov %cr0, %rax; bts $3, %rax; mov %rax, %cr0; clts; mov %cr0, %rax; and $8, %eax; hlt", NONE, 0)                  \
  X(cr1, ".byte 0x0f, 0x20, 0xc8; hlt", UD, 0)                                                                                   \
  X(cr3_reserved, "mov %cr3, %rax; bts $60, %rax; mov %rax, %cr3; hlt", GP, 0)                                                   \
  X(cr3_no_flush_without_pcide, "mov %cr3, %rax; bts $63, %rax; mov %rax, %cr3; hlt", GP, 0)                                     \
  X(cr3_no_flush, "mov %cr4, %rax; bts $17, %rax; mov %rax, %cr4; mov %cr3, %rax; or $5, %rax; bts $63, %rax; mov %rax, %cr3;"   \
                  "mov %cr3, %rax; hlt", NONE, 0x1005)                                                                           \
  X(cr4_pae_off, "mov %cr4, %rax; btr $5, %rax; mov %rax, %cr4; hlt", GP, 0)                                                     \
  X(cr4_la57_in_long_mode, "mov %cr4, %rax; bts $12, %rax; mov %rax, %cr4; hlt", GP, 0)                                          \
  X(cr4_vmxe, "mov %cr4, %rax; bts $13, %rax; mov %rax, %cr4; hlt", GP, 0)                                                       \
  X(cr4_pcide_with_pcid, "mov %cr3, %rax; or $1, %rax; mov %rax, %cr3; mov %cr4, %rax; bts $17, %rax; mov %rax, %cr4; hlt", GP, 0) \
  X(cr8, "mov $9, %eax; mov %rax, %cr8; xor %eax, %eax; mov %cr8, %rax; hlt", NONE, 9)                                           \
  X(cr8_reserved, "mov $16, %eax; mov %rax, %cr8; hlt", GP, 0)                                                                   \
  X(dr4_is_dr6, "mov %dr4, %rax; hlt", NONE, 0xffff0ff0)                                                                         \
  X(dr4_with_de, "mov %cr4, %rax; or $8, %rax; mov %rax, %cr4; mov %dr4, %rax; hlt", UD, 0)                                      \
  X(dr6_fixed_bits, "mov $-1, %eax; mov %rax, %dr6; mov %dr6, %rax; hlt", NONE, 0xffffefff)                                      \
  X(dr7_high_bits, "mov $1, %eax; shl $32, %rax; mov %rax, %dr7; hlt", GP, 0)                                                    \
  X(dr7_general_detect, "mov $0x2400, %eax; mov %rax, %dr7; mov %dr0, %rax; hlt", DB, 0)                                         \
  X(efer_lme_under_paging, "mov $0xc0000080, %ecx; rdmsr; btr $8, %eax; wrmsr; hlt", GP, 0)                                      \
  X(efer_reserved, "mov $0xc0000080, %ecx; rdmsr; bts $1, %eax; wrmsr; hlt", GP, 0)                                              \
  X(efer_lma_is_kept, "mov $0xc0000080, %ecx; rdmsr; btr $10, %eax; wrmsr; rdmsr; and $0x400, %eax; hlt", NONE, 0x400)           \
  X(rdmsr_unknown, "mov $0x1234567, %ecx; rdmsr; hlt", GP, 0)                                                                    \
  X(rdpmc, "xor %ecx, %ecx; rdpmc; hlt", NONE, 0) X(rdpmc_absent, "mov $9, %ecx; rdpmc; hlt", GP, 0)                                                                         \
  X(rdtscp, "mov $0xc0000103, %ecx; mov $77, %eax; xor %edx, %edx; wrmsr; rdtscp; mov %ecx, %eax; hlt", NONE, 77)                \
  X(rdpid, "mov $0xc0000103, %ecx; mov $78, %eax; xor %edx, %edx; wrmsr; rdpid %rax; hlt", NONE, 78)                             \
  X(rdpkru_off, "xor %ecx, %ecx; rdpkru; hlt", UD, 0)                                                                            \
  X(wrpkru, "mov %cr4, %rax; bts $22, %rax; mov %rax, %cr4; xor %ecx, %ecx; xor %edx, %edx; mov $4, %eax; wrpkru; xor %eax, %eax;" \
            "rdpkru; hlt", NONE, 4)                                                                                              \
  X(wrpkru_ecx, "mov %cr4, %rax; bts $22, %rax; mov %rax, %cr4; mov $1, %ecx; xor %edx, %edx; wrpkru; hlt", GP, 0)               \
  X(ospke_follows, "mov %cr4, %rax; bts $22, %rax; mov %rax, %cr4; mov $7, %eax; xor %ecx, %ecx; cpuid; bt $4, %ecx; sbb %eax, %eax;" \
                   "xor %ebx, %ebx; hlt", NONE, 0xffffffff)                                                                      \
  X(invpcid_type, "mov $4, %eax; invpcid (%rsp), %rax; hlt", GP, 0)                                                              \
  X(invpcid_reserved, "movq $0x1000, 0x6000; mov $2, %eax; invpcid 0x6000, %rax; hlt", GP, 0)                                    \
  X(invpcid_without_pcide, "movq $1, 0x6000; mov $1, %eax; invpcid 0x6000, %rax; hlt", GP, 0)                                    \
  X(invpcid_address, "movq $0, 0x6000; movq $0, 0x6008; xor %eax, %eax; invpcid 0x6000, %rax; mov $5, %eax; hlt", NONE, 5)       \
  X(invpcid_non_canonical, "movq $0, 0x6000; movabs $0x8000000000000000, %rax; mov %rax, 0x6008; xor %eax, %eax; invpcid 0x6000, %rax; hlt", GP, 0) \
  X(invlpg_non_canonical, "movabs $0x8000000000000000, %rdx; invlpg (%rdx); mov $6, %eax; hlt", NONE, 6)                         \
  X(clflush, "clflush 0x6000; mov $7, %eax; hlt", NONE, 7)                                                                       \
  X(clflush_fault, "clflush 0x40000000; hlt", PF, 0)                                                                             \
  X(wbinvd, "wbinvd; mov $8, %eax; hlt", NONE, 8)                                                                                \
  X(rdrand, "xor %eax, %eax; rdrand %rdx; sbb %eax, %eax; hlt", NONE, 0xffffffff)                                                \
  X(rdseed_16, "movabs $0x1122334455667788, %rdx; 1: rdseed %dx; jnc 1b; shr $16, %rdx; mov %edx, %eax; hlt", NONE, 0x33445566)  \
  X(serialize, ".byte 0x0f, 0x01, 0xe8; mov $9, %eax; hlt", NONE, 9)                                                             \
  X(rsm_outside_smm, "rsm; hlt", UD, 0)                                                                                          \
  X(monitor_is_a_nop, "mov $10, %eax; xor %ecx, %ecx; xor %edx, %edx; monitor; mwait; hlt", NONE, 10)                            \
  X(hypercall_unknown, "mov $1000, %eax; vmcall; hlt", NONE, (uint64_t)-1000)                                                    \
  X(hypercall_of_amd, "mov $1, %eax; vmmcall; hlt", NONE, 0)                                                                     \
  X(misc_enable_read_only, "mov $0x1a0, %ecx; rdmsr; btr $11, %eax; wrmsr; hlt", GP, 0)                                          \
  X(tsc_adjust, "mov $0x3b, %ecx; xor %eax, %eax; mov $0x1000, %edx; wrmsr; rdtsc; shr $12, %edx; mov %edx, %eax; hlt", NONE, 1) \
  X(spec_ctrl_reserved, "mov $0x48, %ecx; xor %edx, %edx; mov $8, %eax; wrmsr; hlt", GP, 0)
/* clang-format on */

#define CASE_CODE(name, text, vector, rax) CODE64(name, text);
SYSTEM_CASES(CASE_CODE)

static const struct {
  const char *name, *begin, *end;
  int vector;
  uint64_t rax;
} cases[] = {
#define CASE_ROW(name, text, vector, rax) {#name, name##_begin, name##_end, vector, rax},
    SYSTEM_CASES(CASE_ROW)};

static void at_cpl0(void **state) {
  unsigned bad = 0;
  for (size_t k = 0; k < sizeof(cases) / sizeof(cases[0]); k++) {
    struct guest g;
    guest_open(&g, 1, true);
    guest_code64(&g, 0, cases[k].begin, cases[k].end);
    guest_catch_exceptions(&g, true);
    int v = guest_run_vector(&g);
    uint64_t rax = guest_regs(&g, 0).rax;
    if (v != cases[k].vector || (v == NONE && rax != cases[k].rax)) {
      print_error("%s: vector %d, RAX %#lx\n", cases[k].name, v, (unsigned long)rax);
      bad++;
    }
    guest_close(&g);
  }
  assert_int_equal(bad, 0);
}

/* PDPTE registers: which changes of control registers read them again (SDM Vol. 3A 4.4.1). */
#define TOGGLE_CR4(bit) "mov %cr4, %eax; btc $" #bit ", %eax; mov %eax, %cr4;"
#define CHANGE_PDPTE    "movl $0x6f001, 0x5008;"
#define BREAK_PDPTE     "movl $0x6f007, 0x5008;"
#define READ            "mov 0x40000000, %eax; hlt"
/* clang-format off */
#define PAE_CASES(X)                                                                                                             \
  X(pae_nothing, CHANGE_PDPTE READ, NONE, 0xa)                                                                                   \
  X(pae_pke, CHANGE_PDPTE TOGGLE_CR4(22) READ, NONE, 0xa)                                                                        \
  X(pae_smap, CHANGE_PDPTE TOGGLE_CR4(21) READ, NONE, 0xa)                                                                       \
  X(pae_pge, CHANGE_PDPTE TOGGLE_CR4(7) READ, NONE, 0xb)                                                                         \
  X(pae_pse, CHANGE_PDPTE TOGGLE_CR4(4) READ, NONE, 0xb)                                                                         \
  X(pae_smep, CHANGE_PDPTE TOGGLE_CR4(20) READ, NONE, 0xb)                                                                       \
  X(pae_cd, CHANGE_PDPTE "mov %cr0, %eax; btc $30, %eax; mov %eax, %cr0;" READ, NONE, 0xb)                                       \
  X(pae_wp, CHANGE_PDPTE "mov %cr0, %eax; btc $16, %eax; mov %eax, %cr0;" READ, NONE, 0xa)                                       \
  X(pae_cr3, CHANGE_PDPTE "mov %cr3, %eax; mov %eax, %cr3;" READ, NONE, 0xb)                                                     \
  X(pae_reserved_pke, BREAK_PDPTE TOGGLE_CR4(22) READ, NONE, 0xa)                                                                \
  X(pae_reserved_pge, BREAK_PDPTE TOGGLE_CR4(7) READ, GP, 0)                                                                     \
  X(pae_reserved_cr3, BREAK_PDPTE "mov %cr3, %eax; mov %eax, %cr3;" READ, GP, 0)                                                 \
  X(pae_absent, "movl $0x6f006, 0x5008;" TOGGLE_CR4(7) READ, PF, 0)
/* clang-format on */
#define PAE_CODE(name, text, vector, rax) CODE32(name, text);
PAE_CASES(PAE_CODE)
static const struct {
  const char *name, *begin, *end;
  int vector;
  uint64_t rax;
} pae_cases[] = {PAE_CASES(CASE_ROW)};

static void pdpte_registers(void **state) {
  unsigned bad = 0;
  for (size_t k = 0; k < sizeof(pae_cases) / sizeof(pae_cases[0]); k++) {
    struct guest g;
    guest_open(&g, 1, true);
    guest_code32_pae(&g, pae_cases[k].begin, pae_cases[k].end);
    guest_catch_exceptions(&g, false);
    int v = guest_run_vector(&g);
    uint64_t rax = guest_regs(&g, 0).rax;
    if (v != pae_cases[k].vector || (v == NONE && rax != pae_cases[k].rax)) {
      print_error("%s: vector %d, RAX %#lx\n", pae_cases[k].name, v, (unsigned long)rax);
      bad++;
    }
    guest_close(&g);
  }
  assert_int_equal(bad, 0);
}

/* Quirks switched off: #UD instead of NOPs and patches. */
static void without_quirks(void **state) {
  static const struct {
    const char *begin, *end;
  } codes[] = {{monitor_is_a_nop_begin, monitor_is_a_nop_end}, {hypercall_of_amd_begin, hypercall_of_amd_end}};
  for (int k = 0; k < 2; k++) {
    struct guest g;
    struct kvm_enable_cap cap = {.cap = KVM_CAP_DISABLE_QUIRKS2, .args = {0x7f}};
    guest_open(&g, 1, true);
    assert_int_equal(guest_ioctl(g.vm, KVM_ENABLE_CAP, &cap), 0);
    guest_code64(&g, 0, codes[k].begin, codes[k].end);
    guest_catch_exceptions(&g, true);
    assert_int_equal(guest_run_vector(&g), UD);
    guest_close(&g);
  }
}

/* VMCALL at CPL 3 is refused; CPUID faulting and CR4.TSD make their instructions privileged. */
CODE64(user_vmcall, "mov $1, %eax; vmcall; mov %rax, %rdx; ud2");
CODE64(user_rdtsc, "rdtsc; ud2");
CODE64(user_cpuid, "cpuid; ud2");
CODE64(user_hlt, "hlt");
CODE64(user_wrmsr, "wrmsr");
CODE64(user_mov_cr, "mov %cr0, %rax");
CODE64(user_invlpg, "invlpg (%rax)");

static int run_user(struct guest *g, const char *begin, const char *end, uint64_t cr4) {
  struct kvm_sregs s;
  guest_code64(g, 0, begin, end);
  guest_catch_exceptions(g, true);
  assert_int_equal(guest_ioctl(g->cpu[0], KVM_GET_SREGS, &s), 0);
  s.cs.dpl = s.ss.dpl = 3;
  s.cs.selector = 0x23, s.ss.selector = 0x2b;
  s.cr4 |= cr4;
  s.tr = (struct kvm_segment){.base = 0x7800, .limit = 0x67, .type = 11, .present = 1};
  uint64_t rsp0 = 0x7700;
  memcpy(g->memory + 0x7804, &rsp0, 8);
  assert_int_equal(guest_ioctl(g->cpu[0], KVM_SET_SREGS, &s), 0);
  return guest_run_vector(g);
}

static void at_cpl3(void **state) {
  static const struct {
    const char *begin, *end;
    uint64_t cr4;
    int vector;
  } users[] = {{user_vmcall_begin, user_vmcall_end, 0, UD}, {user_rdtsc_begin, user_rdtsc_end, 0, UD},
               {user_rdtsc_begin, user_rdtsc_end, 4, GP},   {user_cpuid_begin, user_cpuid_end, 0, UD},
               {user_hlt_begin, user_hlt_end, 0, GP},       {user_wrmsr_begin, user_wrmsr_end, 0, GP},
               {user_mov_cr_begin, user_mov_cr_end, 0, GP}, {user_invlpg_begin, user_invlpg_end, 0, GP}};
  for (size_t k = 0; k < sizeof(users) / sizeof(users[0]); k++) {
    struct guest g;
    guest_open(&g, 1, true);
    if (run_user(&g, users[k].begin, users[k].end, users[k].cr4) != users[k].vector) fail_msg("case %zu", k);
    if (k == 0) assert_int_equal(guest_regs(&g, 0).rdx, (uint64_t)-1); /* -KVM_EPERM */
    guest_close(&g);
  }
}

static void cpuid_faulting(void **state) {
  struct guest g;
  guest_open(&g, 1, true);
  assert_true(guest_set_msr(&g, 0, 0x140, 1));
  assert_int_equal(run_user(&g, user_cpuid_begin, user_cpuid_end, 0), GP);
  guest_close(&g);
}

/* Paravirtual kick: vCPU 1 halts with interrupts off; vCPU 0 kicks it by its APIC ID; it goes on behind HLT. */
CODE64(kicker, "mov $5, %eax; xor %ebx, %ebx; mov $1, %ecx; vmcall; out %al, $0x70; hlt");
CODE64(sleeper, "cli; out %al, $0x71; hlt; out %al, $0x72; hlt");

struct cpu_thread {
  struct guest *g;
  unsigned cpu;
  int reason;
  unsigned port;
};

static void *run_thread(void *arg) {
  struct cpu_thread *t = arg;
  do t->reason = guest_run(t->g, t->cpu);
  while (t->reason == -EINTR || t->reason == -EAGAIN);
  t->port = t->g->run[t->cpu]->io.port;
  return NULL;
}

static void kick_ends_a_halt(void **state) {
  for (int early = 0; early < 2; early++) { /* the kick comes before or after HLT */
    struct guest g;
    struct kvm_mp_state m = {.mp_state = KVM_MP_STATE_RUNNABLE};
    guest_open_irqchip(&g, 2);
    assert_int_equal(guest_ioctl(g.cpu[1], KVM_SET_MP_STATE, &m), 0);
    guest_code64(&g, 1, sleeper_begin, sleeper_end);
    memcpy(g.memory + 0xa000, kicker_begin, (size_t)(kicker_end - kicker_begin));
    guest_code64(&g, 0, sleeper_begin, sleeper_end);
    struct kvm_regs r = guest_regs(&g, 0);
    r.rip = 0xa000;
    assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_REGS, &r), 0);
    assert_int_equal(guest_run(&g, 1), KVM_EXIT_IO);
    struct cpu_thread t = {.g = &g, .cpu = 1};
    pthread_t thread;
    if (!early) {
      pthread_create(&thread, NULL, run_thread, &t);
      usleep(20000);
    }
    assert_int_equal(guest_run(&g, 0), KVM_EXIT_IO);
    assert_int_equal(guest_regs(&g, 0).rax, 0);
    if (early) pthread_create(&thread, NULL, run_thread, &t);
    pthread_join(thread, NULL);
    assert_int_equal(t.reason, KVM_EXIT_IO);
    assert_int_equal(t.port, 0x72);
    guest_close(&g);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(at_cpl0), cmocka_unit_test(pdpte_registers), cmocka_unit_test(without_quirks),
      cmocka_unit_test(at_cpl3), cmocka_unit_test(cpuid_faulting),  cmocka_unit_test(kick_ends_a_halt),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
