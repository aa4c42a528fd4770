import sys; sys.path.insert(0,'/work/main/tests')
import json
from test_chapter import *
from test_chapter import _mirror, get_learner, pytestmark
import torch
from treadle.all import SGD
def test_x():
    for seed in range(3):
        torch.manual_seed(seed)
        learn=get_learner(opt_func=SGD)
        f=learn.lr_find(sweeps=2,show_plot=False)
        json.dump([[s.lrs,s.raw_losses,s.losses] for s in f.sweeps],open(f'/tmp/tv/find/ch{seed}.json','w'))
        print(f)
    learn=get_learner()
    f=learn.lr_find(sweeps=2,show_plot=False)
    json.dump([[s.lrs,s.raw_losses,s.losses] for s in f.sweeps],open(f'/tmp/tv/find/chadam.json','w'))
    print(f, learn.model.__class__)
