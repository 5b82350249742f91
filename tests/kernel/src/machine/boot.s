# From the power button to 64-bit Rust: the boot sector, and the start of every processor.
# Addresses here are physical, and those at which this part is linked; kernel.ld says where
# the rest is.

.set KERNEL_SEGMENT, 0x0800
.set READ_SECTORS, 64                   # 32 KiB
.set READ_PARAGRAPHS, READ_SECTORS * 512 / 16

.section .boot.sector, "awx"
.code16
.global boot_sector
boot_sector:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $boot_sector, %sp
    movb %dl, drive
    movw $boot_reads, %cx
1:  pushw %cx
    movw $packet, %si
    movb drive, %dl
    movb $0x42, %ah                     # extended read
    int $0x13
    jc .
    popw %cx
    addw $READ_PARAGRAPHS, packet + 6
    addl $READ_SECTORS, packet + 8
    loop 1b
    inb $0x92, %al                      # address line 20
    orb $2, %al
    andb $0xfe, %al
    outb %al, $0x92
    ljmpw $KERNEL_SEGMENT, $0
drive:
    .byte 0
.balign 4
packet:
    .byte 16, 0
    .word READ_SECTORS
    .word 0, KERNEL_SEGMENT             # to here
    .quad 2                             # from this sector on: 0x8000 is 1024 bytes behind 0x7c00
.org 510
    .word 0xaa55

# A start-up interrupt brings every other processor here, with `cs` 0x0800 and `ip` 0.
.section .boot.start, "awx"
.code16
processor_start:
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
    lgdtl boot_gdt_register
    movl $0x20, %eax                    # CR4: PAE
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx              # EFER: LME, NXE
    rdmsr
    orl $0x900, %eax
    wrmsr
    movl %cr0, %eax
    andl $0x1fffffff, %eax              # CR0: no CD, no NW; PG, WP, PE
    orl $0x80010001, %eax
    movl %eax, %cr0
    ljmpl $0x08, $long_mode

.code64
long_mode:
    xorl %eax, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $1, %ebx
    lock xaddl %ebx, next_processor(%rip)
    testl %ebx, %ebx
    jnz 2f
    movq $bss_start, %rdi
    movq $bss_end, %rcx
    subq %rdi, %rcx
    rep stosb
2:  cmpl ${processors}, %ebx
1:  jae 1b
    leal 1(%rbx), %eax
    imulq ${stack_size}, %rax, %rax
    movq ${stacks}, %rsp
    addq %rax, %rsp
    movl %ebx, %edi
    xorl %ebp, %ebp
    movq ${main}, %rax
    call *%rax
    ud2

.balign 8
boot_gdt:
    .quad 0, 0x00af9a000000ffff         # 64-bit code
boot_gdt_register:
    .word 15
    .long boot_gdt
.balign 4
next_processor:
    .long 0

# The first GiB of memory, three times: where this part runs, where the kernel reaches all
# memory, and where the kernel runs.
.balign 4096
boot_pml4:
    .quad boot_pdpt + 3
    .fill 255, 8, 0
    .quad boot_pdpt + 3
    .fill 254, 8, 0
    .quad boot_pdpt_kernel + 3
boot_pdpt:
    .quad boot_pd + 3
    .fill 511, 8, 0
boot_pdpt_kernel:
    .fill 510, 8, 0
    .quad boot_pd + 3, 0
boot_pd:
    .set address, 0
    .rept 512
    .quad address + 0x83
    .set address, address + 0x200000
    .endr
