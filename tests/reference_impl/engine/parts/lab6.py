"""A lab 6 as somebody might write it: first come, first served, room for the whole answer kept, nobody preempted."""

from labkit.contracts import StepPlan


class Scheduler:
    def __init__(self, num_blocks, block_size, max_tokens_per_step, max_running):
        if min(num_blocks, block_size, max_tokens_per_step, max_running) < 1:
            raise ValueError("sizes must be at least 1")
        self.num_blocks, self.block_size = num_blocks, block_size
        self.budget, self.max_running = max_tokens_per_step, max_running
        self.waiting, self.running = {}, {}
        self.scheduled = {}

    def _blocks(self, sizes):
        prompt, new = sizes[:2]
        return -(-(prompt + new - 1) // self.block_size)

    def add(self, request, prompt_tokens, max_new_tokens):
        if request in self.waiting or request in self.running:
            raise ValueError(f"{request} exists")
        if prompt_tokens < 1 or max_new_tokens < 1:
            raise ValueError("sizes must be at least 1")
        sizes = [prompt_tokens, max_new_tokens, prompt_tokens, 0]
        if self._blocks(sizes) > self.num_blocks:
            raise ValueError("never fits")
        self.waiting[request] = sizes

    def abort(self, request):
        if request not in self.waiting and request not in self.running:
            raise KeyError(request)
        self.waiting.pop(request, None)
        self.running.pop(request, None)
        self.scheduled.pop(request, None)

    def schedule(self):
        admitted = []
        held = sum(self._blocks(sizes) for sizes in self.running.values())
        for request, sizes in list(self.waiting.items()):
            if len(self.running) == self.max_running or held + self._blocks(sizes) > self.num_blocks:
                break
            held += self._blocks(sizes)
            self.running[request] = self.waiting.pop(request)
            admitted.append(request)
        left = self.budget
        self.scheduled = {}
        for request, (_, _, tokens, computed) in self.running.items():
            take = min(left, tokens - computed)
            if take:
                self.scheduled[request] = take
                left -= take
        return StepPlan(dict(self.scheduled), (), admitted)

    def finish_step(self, finished):
        for request, taken in self.scheduled.items():
            sizes = self.running[request]
            sizes[3] += taken
            if sizes[3] == sizes[2]:
                sizes[2] += 1
        self.scheduled = {}
        for request in finished:
            del self.running[request]
