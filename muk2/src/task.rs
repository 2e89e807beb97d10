//! Coroutines of one thread, run in turn. A stack each, so that programs may call from any depth.

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use std::collections::VecDeque;

/// Stack of a program or server, in bytes. Touched pages only are used.
const STACK_SIZE: usize = 256 * 1024;

/// A task's number.
pub type TaskId = usize;

/// A task's way back to the others.
pub type Turn<'a> = &'a Yielder<(), Pause>;

/// Why a task gives its turn away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// It can go on at once, after the others.
    Ready,
    /// Until it is woken.
    Asleep,
}

/// All tasks of a world.
#[derive(Default)]
pub struct Tasks {
    /// `None` while it runs, and when it has ended.
    all: Vec<Option<Coroutine<(), Pause, ()>>>,
    alive: Vec<bool>,
    ready: VecDeque<TaskId>,
    queued: Vec<bool>,
}

impl std::fmt::Debug for Tasks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tasks")
            .field("count", &self.all.len())
            .field("ready", &self.ready)
            .finish_non_exhaustive()
    }
}

impl Tasks {
    /// Adds a task; it runs when its turn comes.
    ///
    /// # Errors
    /// No memory for its stack.
    pub fn add(&mut self, body: impl FnOnce(Turn<'_>) + 'static) -> std::io::Result<TaskId> {
        let id = self.all.len();
        // Boxed, because what a coroutine starts with is copied to the top of its stack.
        let body: Box<dyn FnOnce(Turn<'_>)> = Box::new(body);
        let stack = DefaultStack::new(STACK_SIZE)?;
        let coroutine = Coroutine::with_stack(stack, move |yielder, ()| body(yielder));
        self.all.push(Some(coroutine));
        self.alive.push(true);
        self.queued.push(false);
        self.wake(id);
        Ok(id)
    }

    /// Makes a sleeping task ready. One that is ready, or has ended, stays so.
    pub fn wake(&mut self, id: TaskId) {
        if self.alive[id] && !std::mem::replace(&mut self.queued[id], true) {
            self.ready.push_back(id);
        }
    }

    /// Is nobody ready?
    pub fn is_idle(&self) -> bool {
        self.ready.is_empty()
    }

    /// Has the task returned?
    pub fn has_ended(&self, id: TaskId) -> bool {
        !self.alive[id]
    }

    /// Takes the next ready task out to run it. The tasks must be put back with [`Tasks::put_back`]: a running task
    /// may add and wake others, so nothing here is borrowed meanwhile.
    pub fn take_next(&mut self) -> Option<(TaskId, Coroutine<(), Pause, ()>)> {
        loop {
            let id = self.ready.pop_front()?;
            self.queued[id] = false;
            if let Some(coroutine) = self.all[id].take() {
                return Some((id, coroutine));
            }
        }
    }

    /// Puts a task back after its turn.
    pub fn put_back(
        &mut self,
        id: TaskId,
        coroutine: Coroutine<(), Pause, ()>,
        result: CoroutineResult<Pause, ()>,
    ) {
        match result {
            CoroutineResult::Yield(pause) => {
                self.all[id] = Some(coroutine);
                if pause == Pause::Ready {
                    self.wake(id);
                }
            }
            CoroutineResult::Return(()) => self.alive[id] = false,
        }
    }
}
