/** The options of `llavacode train`: the sum of a reward, pretraining, presets; and those of a sweep. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Command } from 'commander';
import { describe, expect, test, vi } from 'vitest';
import { ablateCommand, sweepCommand, trainCommand } from '../../training/command.ts';
import type { Range } from '../../training/sweep/space.ts';
import { TINY_CODER, temporaryFolder } from '../support/models.ts';

const [runTrain, runSweep] = vi.hoisted(() => [vi.fn(), vi.fn()]);
vi.mock('../../training/ablate/terminal.ts', async (original) => ({
  ...(await original<object>()),
  runAblate: vi.fn(),
}));
vi.mock('../../training/run/terminal.ts', () => ({ runTrain }));
vi.mock('../../training/sweep/terminal.ts', () => ({ runSweep }));

const REQUIRED = ['--llm', 'l', '--data', 'd', '--to', 't'];
function quiet(): Command {
  const silent = { writeErr: () => {}, writeOut: () => {} };
  return trainCommand().exitOverride().configureOutput(silent);
}
/** The options of the run that the words ask for. */
async function asked(...words: string[]) {
  runTrain.mockClear();
  await quiet().parseAsync([...REQUIRED, ...words], { from: 'user' });
  return runTrain.mock.calls[0]![0];
}
const refusal = (...words: string[]) =>
  quiet()
    .parseAsync([...REQUIRED, ...words], { from: 'user' })
    .then(
      () => 'accepted',
      ({ message }: Error) => message,
    );

describe('a reward', () => {
  test('a reward is a weighted sum of exact match and edit similarity', async () => {
    expect((await asked()).reward).toEqual({ em: 1, es: 1 });
    for (const [sum, em, es] of [
      ['em', 1, 0],
      ['2*em+es', 2, 1],
      [' 0.5 * es + em ', 1, 0.5],
      ['es+es', 0, 2],
    ] as const) {
      expect((await asked('--reinforce', '1', '--reward', sum)).reward, sum).toEqual({ em, es });
    }
  });

  test.each(['', 'bleu', 'em-es', '2em', 'em+', '*es', '1e9*em', '0*em', 'em,es'])(
    'the reward %j is refused with an example',
    async (sum) => {
      expect(await refusal('--reward', sum)).toMatch(/must be a sum of em and es|always 0/);
    },
  );
});

test('memory is a size in GiB or MiB', async () => {
  expect((await asked('--memory', '7.5g')).memory).toBe(7.5 * 2 ** 30);
  expect((await asked('--memory', '900M')).memory).toBe(900 * 2 ** 20);
  for (const size of ['8', '0g', 'g', '-1g', '8t']) expect(await refusal('--memory', size), size).toMatch('such as 8g');
});

test('the device has the name that workers give it, and its old name is still known', async () => {
  expect((await asked('--provider', 'cuda')).provider).toBe('cuda');
  expect((await asked('--device', 'cuda')).provider).toBe('cuda');
  expect((await asked()).provider).toBeUndefined();
  expect(await refusal('--device', 'cpu', '--provider', 'cuda')).toMatch('cannot be used with');
});

describe('pretraining', () => {
  test('its scheme and settings are those that are given', async () => {
    expect((await asked()).pretrain).toBeUndefined();
    expect((await asked('--pretrain', 'reconstruct', '--pretrain-steps', '9')).pretrain).toEqual({
      scheme: 'reconstruct',
      steps: 9,
      learningRate: 1e-3,
      tokens: 128,
    });
    const words = ['--pretrain', 'memory', '--memory-token-steps', '7', '--pretrain-chunks', '5', '--pretrain-only'];
    expect(await asked(...words)).toMatchObject({
      pretrain: { scheme: 'memory', chunks: 5, memory: { steps: 7, learningRate: 0.01 } },
      pretrainOnly: true,
    });
  });

  test('its options are refused where they have no effect', async () => {
    expect(await refusal('--pretrain-steps', '9')).toMatch("'--pretrain-steps' has no effect without --pretrain");
    expect(await refusal('--pretrain-only')).toMatch("'--pretrain-only' has no effect without --pretrain");
    expect(await refusal('--memory-token-rate', '1')).toMatch("'--memory-token-rate' has no effect");
    const other = ['--pretrain', 'reconstruct', '--memory-token-steps', '3'];
    expect(await refusal(...other)).toMatch("'--memory-token-steps' has no effect with --pretrain reconstruct");
    expect(await ablation('table1', '--pretrain-tokens', '5')).toMatch('has no effect in table1');
    expect(await refusal('--pretrain', 'xrag')).toMatch('Allowed choices are reconstruct, memory');
  });
});

/** What comes of an ablation with tiny-coder: the refusal of its options, or `accepted`. */
async function ablation(...words: string[]): Promise<string> {
  const command = ablateCommand()
    .exitOverride()
    .configureOutput({ writeErr: () => {} });
  const required = ['--llm', TINY_CODER, '--data', 'd', '--validation', 'v', '--to', 't'];
  return command.parseAsync([...words, ...required], { from: 'user' }).then(
    () => 'accepted',
    ({ message }: Error) => message,
  );
}

describe('an option that has no effect is refused, with what it needs', () => {
  test.each([
    [['--reward', 'em'], "'--reward' has no effect without --reinforce"],
    [['--baseline', 'scst'], "'--baseline' has no effect without --reinforce"],
    [
      ['--baseline', 'scst', '--preset', 'paper-7b', '--reinforce', '0'],
      "'--baseline' has no effect without --reinforce",
    ],
    [['--alignment-form', 'mse', '--alignment', '0'], "'--alignment-form' has no effect without --alignment"],
    [['--text-tokens', '9'], "'--text-tokens' has no effect without --kl or --distill"],
    [['--rollout-tokens', '9'], "'--rollout-tokens' has no effect without --reinforce, --distill or --validation"],
    [['--patience', '3'], "'--patience' has no effect without --validation"],
    [['--validation-samples', '500'], "'--validation-samples' has no effect without --validation"],
  ])('in a run: %j', async (words, message) => {
    expect(await refusal(...words)).toMatch(message);
  });

  test.each([
    ['--reward', 'em', '--baseline', 'scst', '--preset', 'paper-1.5b'],
    ['--alignment-form', 'mse'],
    ['--text-tokens', '9', '--rollout-tokens', '9', '--distill', '1'],
    ['--rollout-tokens', '9', '--patience', '3', '--validation-samples', '500', '--validation', 'v'],
  ])('in a run with what they need: %j', async (...words) => {
    expect(await refusal(...words)).toBe('accepted');
  });

  test('in an ablation it is known by the rows', async () => {
    const rows = join(await temporaryFolder(), 'rows.json');
    const own = { id: 'own', weights: { ce: 1 }, layers: 2 };
    await writeFile(rows, JSON.stringify([{ id: 'none', arm: 'none' }, own]));
    expect(await ablation(rows, '--reward', 'em')).toMatch(/'--reward' has no effect in .*: no row has --reinforce/);
    expect(await ablation(rows, '--layers', '3')).toMatch(
      /'--layers' has no effect in .*: all rows that are trained set/,
    );
    expect(await ablation(rows, '--learning-rate', '1')).toBe('accepted');
    expect(await ablation('table3', '--layers', '2')).toMatch("'--layers' has no effect in table3");
    expect(await ablation('table3', '--text-tokens', '9')).toMatch("'--text-tokens' has no effect in table3");
    const all = [
      '--text-tokens',
      '9',
      '--rollout-tokens',
      '9',
      '--layers',
      '2',
      '--reward',
      'em',
      '--alignment-form',
      'mse',
    ];
    expect(await ablation('table1', ...all)).toBe('accepted');
  });
});

test('the weight of distillation stands among the others, and is left out where it is 0', async () => {
  expect((await asked('--distill', '0.5')).weights).toEqual({
    ce: 0.9,
    alignment: 0.1,
    reinforce: 0,
    kl: 0,
    distill: 0.5,
  });
  expect('distill' in JSON.parse(JSON.stringify((await asked()).weights))).toBe(false); // earlier runs go on
});

describe('a preset', () => {
  test("the paper's settings for 1.5B and 7B are those of its Table 7", async () => {
    expect(await asked('--preset', 'paper-1.5b')).toMatchObject({
      weights: { ce: 0.9, reinforce: 0.1, kl: 0, alignment: 0.1 },
      learningRate: 1e-3,
      batch: 66,
      warmup: 0.03,
      schedule: 'cosine',
      epochs: 3,
      layers: 3,
      chunks: 10,
    });
    expect(await asked('--preset', 'paper-7b')).toMatchObject({
      weights: { ce: 0.9, reinforce: 0.05, kl: 0, alignment: 0.2 },
      learningRate: 1e-4,
      batch: 64,
      warmup: 0.04,
    });
  });

  test('options that are given go before those of the preset, steps before its epochs', async () => {
    const found = await asked('--preset', 'paper-7b', '--batch', '8', '--alignment', '0.5', '--steps', '10');
    expect(found).toMatchObject({ batch: 8, weights: { alignment: 0.5, reinforce: 0.05 }, steps: 10 });
    expect(found.epochs).toBeUndefined();
    expect((await asked('--preset', 'paper-7b', '--epochs', '0.5')).epochs).toBe(0.5);
  });

  test('a preset that does not exist, and epochs beside steps, are refused', async () => {
    expect(await refusal('--preset', 'paper-14b')).toMatch('Allowed choices are paper-1.5b, paper-7b');
    expect(await refusal('--epochs', '2', '--steps', '3')).toMatch('cannot be used with');
  });
});

describe('a sweep', () => {
  const required = ['--llm', 'l', '--data', 'd', '--validation', 'v', '--to', 'found/'];
  const sweepOf = async (...words: string[]) => {
    runSweep.mockClear();
    const silent = { writeErr: () => {}, writeOut: () => {} };
    const command = sweepCommand().exitOverride().configureOutput(silent);
    const program = new Command('llavacode').exitOverride().addCommand(command);
    await program.parseAsync(['sweep', ...required, ...words], { from: 'user' });
    const [options, train] = runSweep.mock.calls[0]!;
    return { options, train };
  };
  const refused = (...words: string[]) =>
    sweepOf(...words).then(
      () => 'accepted',
      ({ message }: Error) => message,
    );

  test('its ranges are those that are given, else those of the authors for what nobody gave', async () => {
    const { options } = await sweepOf('--log-range', 'learning-rate=1e-4:1e-2', '--range', 'ce=0:1', 'kl=0.5:2');
    expect(options.ranges).toEqual([
      { name: 'learning-rate', low: 1e-4, high: 1e-2, log: true },
      { name: 'ce', low: 0, high: 1, log: false },
      { name: 'kl', low: 0.5, high: 2, log: false },
    ]);
    expect(options).toMatchObject({ trials: 9, factor: 3, steps: 1000, patience: 0, weights: { alignment: 0.1 } });
    const names = (await sweepOf('--learning-rate', '1e-4')).options.ranges.map(({ name }: Range) => name);
    expect(names).toEqual(['ce', 'alignment', 'reinforce']);
  });

  test('what it gives to llavacode train is what it was given, but for the search itself', async () => {
    const words = [
      '--range',
      'ce=0:1',
      'kl=0:1',
      '--steps',
      '50',
      '--trials=4',
      '--reward',
      '2*em+es',
      '--factor',
      '2',
    ];
    const { train } = await sweepOf(...words, '--reinforce', '0.1', '--recompute');
    const kept = ['--llm', 'l', '--data', 'd', '--validation', 'v', '--steps', '50', '--reward', '2*em+es'];
    expect(train).toEqual([
      ...kept,
      '--reinforce',
      '0.1',
      '--recompute',
      '--embeddings',
      'found/embeddings',
      '--to',
      'found/best',
    ]);
    // It is a command that llavacode train takes.
    runTrain.mockClear();
    await quiet().parseAsync([...train, '--ce', '0.3'], { from: 'user' });
    expect(runTrain.mock.calls[0]![0]).toMatchObject({ weights: { ce: 0.3 }, steps: 50, reward: { em: 2, es: 1 } });
  });

  test('ranges that cannot be are refused, and options that no trial would use', async () => {
    expect(await refused('--range', 'reinforce=0:1', '--reward', 'em')).toBe('accepted');
    for (const [words, what] of [
      [['--range', 'ce=0:1', '--reward', 'em'], "'--reward' has no effect without --reinforce, or a range of it"],
      [['--range', 'batch=1:2'], 'a name of learning-rate, ce'],
      [['--range', 'ce'], 'NAME=LOW:HIGH'],
      [['--range', 'ce=2:1'], 'HIGH above LOW'],
      [['--range', 'ce=0:Infinity'], 'both finite'],
      [['--log-range', 'ce=0:1'], 'above 0'],
      [['--range', 'learning-rate=0:1'], 'above 0'],
      [['--range', 'ce=0:1', '--log-range', 'ce=0.1:1'], 'ce has two ranges'],
      [['--range', 'ce=0:1', '--ce', '1'], '--ce is given, and has a range'],
      [['--learning-rate', '1', '--ce', '1', '--alignment', '1', '--reinforce', '1'], 'nothing is searched'],
      [['--factor', '1'], '2 or more'],
    ] as const) {
      expect(await refused(...words), words.join(' ')).toMatch(what);
    }
  });
});
