import { test, expect } from 'vitest';
import * as f from './fixtures.ts';
import { Graph } from '../../services/lib/model/graph.ts';
import { linear } from '../../services/lib/model/linear.ts';
const tmp = await f.temporaryFolder();
test('big', async () => {
  const g = new Graph();
  let x = g.input('x','float32',['n',1024]);
  const outs = [];
  for (let i=0;i<3;i++) { const y = linear(g, x, {name:'y'+i, rows: 400_000, columns: 1024, read: async () => { const a = new Float32Array(400_000*1024); a[0]=i+1; a[a.length-1]=10*(i+1); return a; }}, 'fp32'); g.output(y,'float32',['n',400_000]); }
  const t=Date.now();
  const s = await f.loadGraph(g, tmp, 'big');
  const out = await s.run({x:{type:'float32',dims:[1,1024],data:new Float32Array(1024).fill(1)}});
  for (let i=0;i<3;i++) { const d = out['y'+i]!.data; console.log(i, d[0], d[399_999], process.memoryUsage().rss/1e9); }
  console.log(Date.now()-t,'ms'); s.dispose();
}, 300000);
