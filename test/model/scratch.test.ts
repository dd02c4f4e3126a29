import { test, expect } from 'vitest';
import * as f from './fixtures.ts';
import { join } from 'node:path';
import { readSpec } from '../../services/lib/model/spec.ts';
import { Checkpoint } from '../../services/lib/model/checkpoint.ts';
import { buildEncoder } from '../../services/lib/model/encoder.ts';
import { buildProjector } from '../../services/lib/model/projector.ts';
for (const [name,pooling,normalize] of [['qwen3-embedding','last',true],['unixcoder','mean',false]] as const) for (const w of ['fp32',{bits:8,block:32}] as const)
test(name + JSON.stringify(w), async () => {
  const tmp = await f.temporaryFolder();
  const dir = join(f.GOLDENS, name);
  const spec = await readSpec(dir);
  const c = await Checkpoint.open(dir);
  const s = await f.loadGraph(buildEncoder(spec, c, {weights:w, pooling, normalize, maxTokens: 128}), tmp, 'e');
  const exp = await f.readJsonFile<any>(join(dir,'expected.json'));
  const e = await f.openExpected(join(dir,'expected.safetensors'));
  const ids = await e.int64('input_ids'); const B = exp.lengths.length; const S = ids.length/B;
  const want = await e.float32('embeddings');
  const {embeddings} = await s.run({input_ids: f.ids64([B,S], ids), lengths: {type:'int32', dims:[B], data: Int32Array.from(exp.lengths)}});
  console.log(name, JSON.stringify(w), f.largestDifference(embeddings!.data as Float32Array, want));
  const H = want.length/B;
  for (let b=0;b<B;b++) {
    const one = await s.run({input_ids: f.ids64([1,S], ids.slice(b*S,(b+1)*S)), lengths: {type:'int32', dims:[1], data: Int32Array.of(exp.lengths[b])}});
    console.log(b, exp.lengths[b], f.largestDifference(one.embeddings!.data as Float32Array, want.subarray(b*H,(b+1)*H)));
  }
});
for (const name of ['projector-mlp2','projector-mlp3']) test(name, async () => {
  const tmp = await f.temporaryFolder();
  const dir = join(f.GOLDENS, name);
  const c = await Checkpoint.open(dir);
  const s = await f.loadGraph(buildProjector(c), tmp, 'e');
  const exp = await f.readJsonFile<any>(join(dir,'expected.json'));
  const e = await f.openExpected(join(dir,'expected.safetensors'));
  const out = await s.run({embeddings: {type:'float32', dims:[7,48], data: await e.float32('x')}});
  console.log(name, f.largestDifference(out.soft_tokens!.data as Float32Array, await e.float32('y')));
});
