/* Alignment checks: CPL 3 with CR0.AM and EFLAGS.AC (SDM Vol. 3A 6.15, interrupt 17), by instruction and operand. */
#include "inside.h"

#define AC       0x40000u
#define CR0_AM   0x40000ull
#define USER_BUF (GUEST_USER + 0x8000)
#define AC0      FAULT(17, 0)

/* Each instruction with the alignment it wants: 1 for those that never complain. */
#define INSNS(X)                                                                                                                 \
  X(movb, 1, "movb (%rbx), %al")                                                                                                 \
  X(movw, 2, "movw (%rbx), %ax")                                                                                                 \
  X(movl, 4, "movl (%rbx), %eax")                                                                                                \
  X(movq, 8, "movq (%rbx), %rax")                                                                                                \
  X(storew, 2, "movw %ax, (%rbx)")                                                                                               \
  X(storeq, 8, "movq %rax, (%rbx)")                                                                                              \
  X(movzx, 2, "movzwl (%rbx), %eax")                                                                                             \
  X(movnti, 4, "movnti %eax, (%rbx)")                                                                                            \
  X(addl, 4, "addl $1, (%rbx)")                                                                                                  \
  X(inc, 4, "lock incl (%rbx)")                                                                                                  \
  X(xchg, 4, "xchg %eax, (%rbx)")                                                                                                \
  X(xadd, 8, "lock xaddq %rax, (%rbx)")                                                                                          \
  X(cmpxchg8b, 8, "cmpxchg8b (%rbx)")                                                                                            \
  X(bt_imm, 4, "btl $1, (%rbx)")                                                                                                 \
  X(bts_reg, 4, "xor %eax, %eax\n btsl %eax, (%rbx)")                                                                            \
  X(popcnt, 4, "popcnt (%rbx), %eax")                                                                                            \
  X(crc32, 4, "crc32l (%rbx), %eax")                                                                                             \
  X(lar, 2, "lar (%rbx), %eax")                                                                                                  \
  X(verr, 2, "verr (%rbx)")                                                                                                      \
  X(push_mem, 8, "pushq (%rbx)")                                                                                                 \
  X(push, 8, "lea 8(%rbx), %rsp\n pushq %rax")                                                                                   \
  X(pop, 8, "mov %rbx, %rsp\n pop %rax")                                                                                         \
  X(call, 8, "lea 8(%rbx), %rsp\n call 1f\n 1:")                                                                                 \
  X(enter, 8, "lea 8(%rbx), %rsp\n enter $16, $0")                                                                               \
  X(leave, 8, "mov %rbx, %rbp\n leave")                                                                                          \
  X(stosl, 4, "mov %rbx, %rdi\n stosl")                                                                                          \
  X(lodsw, 2, "mov %rbx, %rsi\n lodsw")                                                                                          \
  X(rep_movsb, 1, "mov %rbx, %rsi\n mov %rbx, %rdi\n mov $4, %ecx\n rep movsb")                                                  \
  X(rep_movsl, 4, "mov %rbx, %rsi\n mov %rbx, %rdi\n mov $4, %ecx\n rep movsl")                                                  \
  X(sgdt, 8, "sgdt 6(%rbx)")                                                                                                     \
  X(movss, 4, "movss (%rbx), %xmm0")                                                                                             \
  X(movsd, 8, "movsd (%rbx), %xmm0")                                                                                             \
  X(movhps, 8, "movhps (%rbx), %xmm0")                                                                                           \
  X(movups, 1, "movups (%rbx), %xmm0")                                                                                           \
  X(storeups, 1, "movups %xmm0, (%rbx)")                                                                                         \
  X(lddqu, 1, "lddqu (%rbx), %xmm0")                                                                                             \
  X(pinsrd, 4, "pinsrd $0, (%rbx), %xmm0")                                                                                       \
  X(ldmxcsr, 4, "stmxcsr (%rbx)\n ldmxcsr (%rbx)")                                                                               \
  X(fild, 8, "fildll (%rbx)\n fstp %st(0)")                                                                                      \
  X(flds, 4, "flds (%rbx)\n fstp %st(0)")                                                                                        \
  X(fldl, 8, "fldl (%rbx)\n fstp %st(0)")                                                                                        \
  X(fldt, 8, "fldt (%rbx)\n fstp %st(0)")                                                                                        \
  X(fbstp, 8, "fldz\n fbstp (%rbx)")                                                                                             \
  X(fnstcw, 2, "fnstcw (%rbx)")                                                                                                  \
  X(fnstenv, 4, "fnstenv (%rbx)")                                                                                                \
  X(mmx, 8, "movq (%rbx), %mm0\n emms")                                                                                          \
  X(lcall, 8, "mov %rsp, %rdx\n lea 16(%rbx), %rsp\n rex.w lcall *far_pointer - user_code + 0x10000")                            \
  X(lret, 8, "mov %rbx, %rsp\n rex.w lret")                                                                                      \
  X(iretq, 8, "mov %rbx, %rsp\n iretq")

/* 64 bytes each. */
extern const u8 user_code[], user_code_end[];
#define CODE(name, align, text) ".balign 64\n" text "\nint $0x81\n"
__asm__(".pushsection .guest_code, \"ax\"\n.balign 64\nuser_code:\n" INSNS(
    CODE) ".balign 64\nint $0x81\n.balign 16\n"
          "far_pointer: .quad 0x10000 + user_landing - user_code\n.word 0x3b\nuser_landing: int $0x81\n"
          "user_code_end:\n.popsection");

#define NAME(name, align, text) {#name, align},
static const struct {
  const char *name;
  u8 align;
} insns[] = {INSNS(NAME)};
#define N_INSNS (sizeof(insns) / sizeof(insns[0]))
static volatile u32 got[N_INSNS][3][8];
static volatile u64 landing;

/* What LRET and IRETQ pop, at the buffer: they lead to USER_DONE. */
static void fill(u64 at) {
  volatile u64 *p = (u64 *)(uintptr_t)at;
  p[0] = landing;
  p[1] = SEL_CODE64U;
  p[2] = AC | 2;
  p[3] = GUEST_STACK3;
  p[4] = SEL_DATA3;
}

/* All offsets: with AC and AM, and with one of them. */
static void guest_all(void) {
  u64 cr0 = read_cr0();
  __asm__ volatile("fninit");
  for (unsigned n = 0; n < N_INSNS; n++)
    for (unsigned how = 0; how < 3; how++)
      for (unsigned off = 0; off < 8; off++) {
        write_cr0(how == 1 ? cr0 & ~CR0_AM : cr0 | CR0_AM);
        fill(USER_BUF + off);
        got[n][how][off] = user_run_flags(GUEST_USER + 64 * n, USER_BUF + off, how == 2 ? 2 : AC | 2);
      }
  done();
}

static void all(void) {
  struct guest *g = inside_start(guest_all);
  guest_load(g, GUEST_USER, user_code, (size_t)(user_code_end - user_code));
  guest_map(g, USER_BUF, USER_BUF, 0x1000, P_W | P_U);
  landing = GUEST_USER + (u64)(user_code_end - user_code) - 2;
  CHECK_EQ(guest_next(g), DONE);
  for (unsigned n = 0; n < N_INSNS; n++)
    for (unsigned how = 0; how < 3; how++)
      for (unsigned off = 0; off < 8; off++) {
        u32 want = how || off % insns[n].align == 0 ? NO_FAULT : AC0;
        if (got[n][how][off] != want) check_failed(__FILE__, __LINE__, insns[n].name, got[n][how][off], want);
      }
  guest_free(g);
}

/* Ring 0 is never checked. */
static void guest_supervisor(void) {
  write_cr0(read_cr0() | CR0_AM);
  EXPECT_EQ(TRY("pushfq\n orl $0x40000, (%%rsp)\n popfq\n movl 1(%0), %%eax\n movq %%rax, 3(%0)", "r"(USER_BUF)), NO_FAULT);
  done();
}
static void supervisor(void) {
  struct guest *g = inside_start(guest_supervisor);
  inside_run(g);
}

GUEST_MAIN({"all", all}, {"supervisor", supervisor})
