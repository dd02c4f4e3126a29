/** The command `llavacode bench start`. */
import { count } from '../../services/lib/process/count-argument.ts';
import { option, optional, type ParsedOptions, text, whole } from '../options.ts';

export const START_COMMAND = {
  name: 'start',
  description: 'time and CPU from npm start to a first completion, and what a system without requests takes',
  options: {
    runs: option('<n>', 'starts of each kind: on an empty data folder, and on the one that a start has left', count, 5),
    idleSeconds: option('<n>', 'time for which a system without requests is watched, in s', whole, 60),
    against: optional('<dir>', 'a built checkout of another version, which is started in turns with this one', text),
  },
};
export type StartOptions = ParsedOptions<typeof START_COMMAND>;
