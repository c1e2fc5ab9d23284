"""What a run needs before it is started: parameters, memory, arithmetic, time. Pure; loads no torch.

    architecture ──▶ activations ──▶ memory ──▶ plan ──▶ advice
                 └─▶ flops ────────▶ throughput ──▲

`alphadrive.plan_command` shows it. Memory of processes and of model states is `alphadrive.capacity`'s.
"""
