import type { Command } from 'commander';
import { describe, expect, expectTypeOf, it, onTestFinished } from 'vitest';
import { benchCommand, evaluateCommand, planCommand } from '../../bench/commands.ts';
import {
  commandText,
  counts,
  defaultsOf,
  flag,
  makeCommand,
  type OptionsOf,
  oneOf,
  onlyModel,
  option,
  optional,
  required,
  text,
  whole,
  words,
} from '../../bench/options.ts';

const TABLE = {
  promptTokens: option('<n>', 'tokens of a prompt', whole, 500),
  sizes: option('<list>', 'sizes', counts, [1, 2]),
  contexts: option('<list>', 'contexts', words(['text', 'off']), ['text']),
  pace: oneOf('<kind>', 'the pace', ['typed', 'answered'], 'typed'),
  redis: optional('<url>', 'a Redis', text),
  spin: flag('spin'),
};

/** Parses words as the command line does. */
async function parse(...given: string[]) {
  const parsed: { options: unknown; given: unknown }[] = [];
  const command = makeCommand({ name: 'some', description: 'some bench', options: TABLE }, async (options, own) => {
    parsed.push({ options, given: own });
  });
  const quiet = { writeOut: () => {}, writeErr: () => {} };
  await command.exitOverride().configureOutput(quiet).parseAsync(given, { from: 'user' });
  return parsed[0]!;
}

describe('a table of options', () => {
  it('a table of options gives them their types and defaults', async () => {
    expectTypeOf<OptionsOf<typeof TABLE>>().toEqualTypeOf<{
      readonly promptTokens: number;
      readonly sizes: number[];
      readonly contexts: ('text' | 'off')[];
      readonly pace: 'typed' | 'answered';
      readonly redis: string | undefined;
      readonly spin: boolean;
    }>();
    const defaults = { promptTokens: 500, sizes: [1, 2], contexts: ['text'], pace: 'typed', spin: false };
    expect(defaultsOf(TABLE)).toEqual(defaults);
    const { options, given } = await parse();
    expect(options).toMatchObject({ ...defaults, out: 'bench/results' });
    expect(given).toEqual({});
  });

  it('options that are given are parsed, and reported apart from defaults', async () => {
    const { options, given } = await parse('--prompt-tokens', '0', '--sizes', '3,4', '--pace', 'answered', '--spin');
    const own = { promptTokens: 0, sizes: [3, 4], pace: 'answered', spin: true };
    expect(options).toMatchObject({ ...own, contexts: ['text'] });
    expect(given).toEqual(own);
  });

  it.each([
    [['--prompt-tokens', '-1'], /whole number, 0 or more/],
    [['--sizes', '3,0'], /whole number, 1 or more/],
    [['--contexts', 'text,soft'], /soft must be one of text, off/],
    [['--pace', 'slow'], /typed, answered/],
  ])('%j is refused with a message that says what is allowed', async (given, message) => {
    await expect(parse(...given)).rejects.toThrow(message);
  });

  it('a required option must be given', async () => {
    const spec = { name: 'some', description: 'some bench', options: { rate: required('<n>', 'the rate', whole) } };
    const command = makeCommand(spec, async () => {})
      .exitOverride()
      .configureOutput({ writeErr: () => {} });
    await expect(command.parseAsync([], { from: 'user' })).rejects.toThrow(/--rate <n>/);
  });

  it('a command is written as a user would type it', () => {
    const options = { promptTokens: 5, sizes: [1, 2], name: undefined, slo: { ttft: 500, tpot: 50 } };
    const written = 'llavacode bench some --prompt-tokens 5 --sizes 1,2 --slo ttft:500,tpot:50';
    expect(commandText('bench some', options)).toBe(written);
  });

  it('a command that was typed is kept so that a shell takes it again', async () => {
    const { argv } = process;
    onTestFinished(() => {
      process.argv = argv;
    });
    process.argv = ['node', 'cli.js', 'bench', 'some', '--only', "two hosts,it's", '--sizes', '1,2', '--pace=a'];
    const { options } = await parse();
    expect(options).toMatchObject({
      command: String.raw`llavacode bench some --only 'two hosts,it'\''s' --sizes 1,2 --pace=a`,
    });
  });
});

describe('the commands of the benches', () => {
  const commands = [...benchCommand().commands, planCommand(), evaluateCommand()];

  it('every bench of the suite has a command', () => {
    expect(commands.map((command: Command) => command.name())).toEqual([
      'tables',
      'load',
      'interference',
      'breakdown',
      'observability',
      'dashboards',
      'retrieval',
      'dense',
      'recall',
      'index',
      'typing',
      'engine',
      'handoff',
      'peers',
      'gpu',
      'training',
      'fairness',
      'speculation',
      'start',
      'drills',
      'soak',
      'all',
      'report',
      'plan',
      'evaluate',
    ]);
  });

  it('no command has two options of one name, and every option is described', () => {
    for (const command of commands) {
      const flags = command.options.map(({ long }) => long);
      expect(new Set(flags).size).toBe(flags.length);
      expect(command.options.filter(({ description }) => description === '')).toEqual([]);
    }
  });

  it('a bench of one model refuses several', () => {
    expect(() => onlyModel({ models: ['a', 'b'] })).toThrow(/--models a,b names 2 models/);
    expect(onlyModel({ models: ['a'] })).toBe('a');
  });
});
