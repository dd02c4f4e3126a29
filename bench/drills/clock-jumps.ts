/**
 * Starts processes whose wall clock jumps, which must not disturb what they time. The clock of the machine stays as it
 * is.
 */

const JUMP_MS = 3_600_000;
const EVERY_MS = 500;

/** Code that each process runs first: `Date.now` and every `Date` without arguments jump back and forth. */
const PRELOAD = `
const Real = Date;
let offset = 0;
const next = [${JUMP_MS}, 0, ${-JUMP_MS}, 0];
setInterval(() => { next.push(offset = next.shift()); }, ${EVERY_MS}).unref();
globalThis.Date = class extends Real {
  constructor(...given) { given.length === 0 ? super(Real.now() + offset) : super(...given); }
  static now() { return Real.now() + offset; }
};
`;

/** Calls `start`; the processes that it starts have jumping clocks. */
export async function withJumpingClocks<T>(start: () => Promise<T>): Promise<T> {
  const before = process.env.NODE_OPTIONS;
  const preload = `--import data:text/javascript;base64,${Buffer.from(PRELOAD).toString('base64')}`;
  process.env.NODE_OPTIONS = [before, preload].filter(Boolean).join(' ');
  try {
    return await start();
  } finally {
    if (before === undefined) delete process.env.NODE_OPTIONS;
    else process.env.NODE_OPTIONS = before;
  }
}
