/**
 * Divides long work on the event loop into turns, so that no work keeps the others waiting for long.
 *
 *   if (turns.over) await turns.next();       between two pieces of it
 *   await inTurns(steps, signal);             for work that is a generator, which yields between two pieces
 *   for await (const item of eachInTurns(…))  for items that are handed on one by one
 *
 * All long work of the process shares one turn per round of the event loop, and waits for its next turn in one line: a
 * hundred long pieces of work at once do not block the loop for a hundred turns.
 */
import { setImmediate } from 'node:timers';

/** Other work on the event loop waits at most this long, in ms, plus the time of one piece. */
const TURN_MS = 5;

/** Those that wait for a turn, the first one first. */
const line: (() => void)[] = [];
let open = false;
let endsMs = 0;

function openTurn(): void {
  open = true;
  endsMs = performance.now() + TURN_MS;
  // Runs after the events of this round, and before those of the next one.
  setImmediate(() => {
    open = false;
    const next = line.shift();
    if (next === undefined) return;
    openTurn();
    next();
  });
}

export class Turns {
  /** Whether the turn is over. Ask this before `next`, because awaiting between a million pieces would be slow. */
  get over(): boolean {
    if (!open) openTurn();
    return performance.now() >= endsMs;
  }

  /** Lets other work run, then starts a new turn. @throws the signal's reason. */
  async next(signal?: AbortSignal): Promise<void> {
    if (!open) openTurn();
    await new Promise<void>((resolve) => line.push(resolve));
    signal?.throwIfAborted();
  }
}

/**
 * Runs work to its end in turns, and returns what it returns.
 * @param steps yields between two pieces of the work.
 * @throws whatever the work throws; the signal's reason, also where it was given up before it began.
 */
export async function inTurns<T>(steps: Generator<unknown, T>, signal?: AbortSignal): Promise<T> {
  signal?.throwIfAborted();
  const turns = new Turns();
  const given: Generator<unknown, unknown> = steps;
  try {
    for (;;) {
      if (turns.over) await turns.next(signal);
      const step = steps.next();
      if (step.done) return step.value;
    }
  } finally {
    given.return(undefined); // what is given up midway cleans up
  }
}

/**
 * The items, each of which is made while a turn lasts.
 * @throws whatever making them throws; the signal's reason.
 */
export async function* eachInTurns<T>(items: Iterable<T>, signal?: AbortSignal): AsyncGenerator<T> {
  const turns = new Turns();
  if (turns.over) await turns.next(signal);
  for (const item of items) {
    yield item;
    if (turns.over) await turns.next(signal);
  }
}

/** Runs work that is divided into steps to its end in one go. */
export function atOnce<T>(steps: Generator<unknown, T>): T {
  for (;;) {
    const step = steps.next();
    if (step.done) return step.value;
  }
}
