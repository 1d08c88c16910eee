/* The guest's trap handlers and its way into user mode.  Handlers keep every register; C code called from here uses general registers only. */
        .text

        .macro SAVE_ALL
        pushq   %rax
        pushq   %rcx
        pushq   %rdx
        pushq   %rsi
        pushq   %rdi
        pushq   %r8
        pushq   %r9
        pushq   %r10
        pushq   %r11
        .endm
        .macro RESTORE_ALL
        popq    %r11
        popq    %r10
        popq    %r9
        popq    %r8
        popq    %rdi
        popq    %rsi
        popq    %rdx
        popq    %rcx
        popq    %rax
        .endm

        .globl  trap_page_fault
        .hidden trap_page_fault
trap_page_fault:
        SAVE_ALL
        cld
        movq    %cr2, %rdi
        call    map_lazily
        RESTORE_ALL
        addq    $8, %rsp
        iretq

/* DIV of two bytes faulted: as if it had given 0. */
        .globl  trap_divide
        .hidden trap_divide
trap_divide:
        xorl    %eax, %eax
        xorl    %edx, %edx
        addq    $2, (%rsp)
        iretq

/* UD2: two bytes that count. */
        .globl  trap_undefined
        .hidden trap_undefined
trap_undefined:
        incq    %rax
        addq    $2, (%rsp)
        iretq

/* INT 80h of user mode: RAX 0 leaves it, all others are answered. */
        .globl  trap_call
        .hidden trap_call
trap_call:
        testq   %rax, %rax
        je      1f
        leaq    (%rax,%rdi,2), %rax
        iretq
1:      movl    $0x10, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movq    %rdi, %rax
        movq    0x2ff00, %rsp
        jmp     user_left

/* u64 user_call(fn, arg, stack): the kernel's stack pointer waits at 2FF00h. */
        .globl  user_call
        .hidden user_call
        .type   user_call, @function
user_call:
        pushq   %rbx
        pushq   %rbp
        pushq   %r12
        pushq   %r13
        pushq   %r14
        pushq   %r15
        movq    %rsp, 0x2ff00
        movq    %rdi, %rax
        movq    %rsi, %rdi
        pushq   $0x33
        pushq   %rdx
        pushq   $0x2
        pushq   $0x3b
        pushq   %rax
        iretq
user_left:
        pushq   $0x10
        leaq    8(%rsp), %rcx
        pushq   %rcx
        pushq   $0x2
        pushq   $0x08
        leaq    1f(%rip), %rcx
        pushq   %rcx
        iretq
1:      popq    %r15
        popq    %r14
        popq    %r13
        popq    %r12
        popq    %rbp
        popq    %rbx
        ret

        .globl  user_return
        .hidden user_return
        .type   user_return, @function
user_return:
        xorl    %eax, %eax
        int     $0x80

        .section .note.GNU-stack, "", @progbits
