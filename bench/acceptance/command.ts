/** The command `llavacode acceptance`, declared without the code that it runs. */
import { Command } from 'commander';
import { count } from '../../services/lib/process/count-argument.ts';

export interface AcceptanceOptions {
  /** URL of the deployment, with the path that stands before its routes, if any. */
  readonly url: string;
  /** API key; '' for a deployment without keys. */
  readonly key: string;
  readonly keyFile: string;
  /** File that holds a key whose `expires` has passed; '' for none. */
  readonly expiredKeyFile: string;
  /** Nothing is indexed and nothing is deleted. */
  readonly readOnly: boolean;
  /** Longest time that one answer may take, in s. */
  readonly timeout: number;
  /** File for the verdicts. */
  readonly json?: string;
}

/** @param run gets the parsed options. */
export const acceptanceCommand = (run: (options: AcceptanceOptions) => Promise<unknown>): Command =>
  new Command('acceptance')
    .description('ask a deployment for every route in every case, and say which answers are not what the API promises')
    .requiredOption('--url <url>', 'the deployment, such as https://code.example')
    .option('--key <key>', 'API key; LLAVACODE_API_KEY says it where other users cannot read it', '')
    .option('--key-file <file>', 'file that holds the API key', '')
    .option('--expired-key-file <file>', 'file that holds a key that has ended; each route must refuse it', '')
    .option('--read-only', 'index nothing and delete nothing; the routes that would are not checked', false)
    .option('--timeout <s>', 'longest time that one answer may take, in s', count, 60)
    .option('--json <file>', 'write the verdicts there')
    .action(async (options: AcceptanceOptions) => void (await run(options)));
