/** A timer for "no answer has come in time" that does not blame the peer when this process itself has stalled. */

/**
 * Calls `onLate` after `delayMs` and one more turn of the event loop. If this process was the one that stalled, the
 * answer already lies in the socket: it is read in that turn and cancels the timer.
 * @returns cancels the timer; calling it twice, or after `onLate` has run, is harmless.
 */
export function startLateTimer(delayMs: number, onLate: () => void): () => void {
  let immediate: NodeJS.Immediate | undefined;
  const timer = setTimeout(() => {
    immediate = setImmediate(onLate);
  }, delayMs);
  return () => {
    clearTimeout(timer);
    clearImmediate(immediate);
  };
}
