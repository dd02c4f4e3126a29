/** A timer for "no answer has come in time" that does not blame others for this process's own stalls. */

/**
 * Calls `onLate` after `delayMs`, and one turn of the event loop later: where this process was the one that stood still,
 * the answer already lies in the socket, is read in that turn, and cancels the timer.
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
