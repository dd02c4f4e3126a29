/** The progress of a part of a command: its steps are shown behind the name of the part, which goes on in between. */
import type { Progress } from '../../services/lib/process/progress.ts';

export const within = (progress: Progress, name: string): Progress => ({
  start: (text) => progress.update(`${name}: ${text}`),
  update: (text) => progress.update(`${name}: ${text}`),
  succeed: (text) => progress.update(`${name}: ${text}`),
  warn: (text) => {
    progress.warn(`${name}: ${text}`);
    progress.start(name);
  },
  fail: () => {},
});
