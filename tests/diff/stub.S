/* Enters native code with all registers loaded, and comes back with all of them stored. */
        .text

/* Offsets in struct diff_state. */
        .set    XSAVE, 0
        .set    GPR, 4096
        .set    RFLAGS, GPR + 128
        .set    COMPONENTS, 0xe7

        .globl  host_enter
        .hidden host_enter
        .type   host_enter, @function
/* void host_enter(void): in host_in, host_entry, host_ext; out host_out. */
host_enter:
        pushq   %rbx
        pushq   %rbp
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        movq    %rsp, host_stack(%rip)
        cmpb    $0, host_ext(%rip)
        je      1f
        movl    $COMPONENTS, %eax
        xorl    %edx, %edx
        xrstor64 host_in+XSAVE(%rip)
1:      cmpq    $0, host_cs(%rip)
        jne     enter_other
        pushq   host_in+RFLAGS(%rip)
        movq    host_in+GPR+0(%rip), %rax
        movq    host_in+GPR+8(%rip), %rcx
        movq    host_in+GPR+16(%rip), %rdx
        movq    host_in+GPR+24(%rip), %rbx
        movq    host_in+GPR+40(%rip), %rbp
        movq    host_in+GPR+48(%rip), %rsi
        movq    host_in+GPR+56(%rip), %rdi
        movq    host_in+GPR+64(%rip), %r8
        movq    host_in+GPR+72(%rip), %r9
        movq    host_in+GPR+80(%rip), %r10
        movq    host_in+GPR+88(%rip), %r11
        movq    host_in+GPR+96(%rip), %r12
        movq    host_in+GPR+104(%rip), %r13
        movq    host_in+GPR+112(%rip), %r14
        movq    host_in+GPR+120(%rip), %r15
        popfq
        movq    host_in+GPR+32(%rip), %rsp
        jmp     *host_entry(%rip)

/* Other modes: data segments by hand, code and stack segment by IRET, from a stack in low memory. */
enter_other:
        movl    host_ds(%rip), %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    host_gs(%rip), %eax
        movl    %eax, %gs
        movq    host_entry_stack(%rip), %rsp
        pushq   host_ds(%rip)
        pushq   host_in+GPR+32(%rip)
        pushq   host_in+RFLAGS(%rip)
        pushq   host_cs(%rip)
        pushq   host_entry(%rip)
        movq    host_in+GPR+0(%rip), %rax
        movq    host_in+GPR+8(%rip), %rcx
        movq    host_in+GPR+16(%rip), %rdx
        movq    host_in+GPR+24(%rip), %rbx
        movq    host_in+GPR+40(%rip), %rbp
        movq    host_in+GPR+48(%rip), %rsi
        movq    host_in+GPR+56(%rip), %rdi
        iretq

        .globl  host_exit
        .hidden host_exit
/* The code jumps here when it has run through. */
host_exit:
        movq    %rax, host_out+GPR+0(%rip)
        movq    %rcx, host_out+GPR+8(%rip)
        movq    %rdx, host_out+GPR+16(%rip)
        movq    %rbx, host_out+GPR+24(%rip)
        movq    %rsp, host_out+GPR+32(%rip)
        movq    %rbp, host_out+GPR+40(%rip)
        movq    %rsi, host_out+GPR+48(%rip)
        movq    %rdi, host_out+GPR+56(%rip)
        movq    %r8, host_out+GPR+64(%rip)
        movq    %r9, host_out+GPR+72(%rip)
        movq    %r10, host_out+GPR+80(%rip)
        movq    %r11, host_out+GPR+88(%rip)
        movq    %r12, host_out+GPR+96(%rip)
        movq    %r13, host_out+GPR+104(%rip)
        movq    %r14, host_out+GPR+112(%rip)
        movq    %r15, host_out+GPR+120(%rip)
        movq    host_stack(%rip), %rsp
        pushfq
        popq    host_out+RFLAGS(%rip)
        cmpb    $0, host_ext(%rip)
        je      host_return
        movl    $COMPONENTS, %eax
        xorl    %edx, %edx
        xsave64 host_out+XSAVE(%rip)

        .globl  host_return
        .hidden host_return
/* Signals resume here, with the stack of host_enter. */
host_return:
        pushq   $0x202
        popfq
        cmpb    $0, host_ext(%rip)
        je      1f
        movl    $COMPONENTS, %eax
        xorl    %edx, %edx
        xrstor64 host_clean(%rip)
1:
        popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %rbp
        popq    %rbx
        ret
        .size   host_enter, . - host_enter

        .section .note.GNU-stack, "", @progbits
