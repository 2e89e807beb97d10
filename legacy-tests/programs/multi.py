"""The synchronisation of multiprocessing, which is made of named semaphores: with fork and with spawn."""

import multiprocessing
import sys


def add(lock, value, times):
    for _ in range(times):
        with lock:
            value.value += 1


def limited(semaphore, inside, most):
    for _ in range(20):
        with semaphore:
            with inside.get_lock():
                inside.value += 1
                most.value = max(most.value, inside.value)
            with inside.get_lock():
                inside.value -= 1


def double(tasks, results):
    for number in iter(tasks.get, None):
        results.put(number * 2)


def all_of(context, function, arguments, count=3):
    processes = [context.Process(target=function, args=arguments) for _ in range(count)]
    for process in processes:
        process.start()
    return processes


def end(processes):
    for process in processes:
        process.join()
        assert process.exitcode == 0, process


def main(method):
    context = multiprocessing.get_context(method)
    lock, value = context.Lock(), context.Value("i", 0, lock=False)
    end(all_of(context, add, (lock, value, 100)))
    assert value.value == 300, value.value

    semaphore, inside, most = context.Semaphore(2), context.Value("i", 0), context.Value("i", 0)
    end(all_of(context, limited, (semaphore, inside, most)))
    assert 1 <= most.value <= 2, most.value

    tasks, results = context.Queue(), context.Queue()
    workers = all_of(context, double, (tasks, results))
    for number in range(100):
        tasks.put(number)
    assert sorted(results.get() for _ in range(100)) == [number * 2 for number in range(100)]
    for _ in workers:
        tasks.put(None)
    end(workers)

    bounded = context.BoundedSemaphore(1)
    bounded.acquire()
    assert not bounded.acquire(timeout=0.05)
    bounded.release()
    try:
        bounded.release()
        raise AssertionError("released twice")
    except ValueError:
        pass

    event, condition = context.Event(), context.Condition()
    assert not event.wait(0.01)
    event.set()
    assert event.wait()
    with condition:
        assert not condition.wait(0.01)


if __name__ == "__main__":
    for method in sys.argv[1:]:
        main(method)
    print("multiprocessing: ok")
